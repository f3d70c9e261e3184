//! Numbers that one CTA leaves for others, word by word: zero until they are there, then what
//! [`posted`] makes of them. A word says for itself that it has come, so that
//! relaxed accesses do: no fence waits for a CTA's other stores, and loads may start before somebody needs what they bring.

use cuda_std::atomic;
use sage_spec::schedule::{posted, received};

/// Leaves `x` at `address`.
///
/// # Safety
/// `address` is 4-byte aligned, mapped, zero before the launch, and accessed as posted words only.
#[inline(always)]
pub unsafe fn post(address: u64, x: f32) {
    // SAFETY: forwarded contract.
    unsafe { atomic::store_relaxed(address, posted(x)) };
}

/// What was posted at `address`, once it is there. (It acquires, which it need not; it is called once a head.)
///
/// # Safety
/// As for [`Four::request`], 4-byte aligned.
#[cfg(any(feature = "sm_89", feature = "sm_90a"))]
#[inline(always)]
pub unsafe fn wait(address: u64) -> f32 {
    loop {
        // SAFETY: forwarded contract.
        let word = unsafe { atomic::load_acquire(address) };
        if word != 0 {
            return received(word);
        }
    }
}

/// Four neighbouring words on their way.
#[derive(Clone, Copy)]
pub struct Four {
    address: u64,
    words: [u32; 4],
}

impl Four {
    /// Starts loading.
    ///
    /// # Safety
    /// As for [`post`], 16-byte aligned; the words are posted by work of smaller tickets than the caller's, or of tiles
    /// that are begun and wait for such only.
    #[inline(always)]
    pub unsafe fn request(address: u64) -> Four {
        // SAFETY: forwarded contract.
        Four { address, words: unsafe { atomic::load_relaxed_x4(address) } }
    }

    /// Whether all words have come.
    #[inline(always)]
    fn are_here(&self) -> bool {
        self.words[0] != 0 && self.words[1] != 0 && self.words[2] != 0 && self.words[3] != 0
    }

    /// What was posted, once it is there.
    #[inline(always)]
    pub fn wait(mut self) -> [f32; 4] {
        while !self.are_here() {
            // SAFETY: as promised to `request`.
            self = unsafe { Four::request(self.address) };
        }
        self.words.map(received)
    }
}

/// Eight neighbouring words on their way.
#[derive(Clone, Copy)]
pub struct Eight(Four, Four);

impl Eight {
    /// As [`Four::request`].
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub unsafe fn request(address: u64) -> Eight {
        // SAFETY: forwarded contract.
        unsafe { Eight(Four::request(address), Four::request(address + 16)) }
    }

    /// Whether all words have come.
    #[inline(always)]
    pub fn are_here(&self) -> bool {
        self.0.are_here() && self.1.are_here()
    }

    /// As [`Four::wait`].
    #[inline(always)]
    pub fn wait(self) -> [f32; 8] {
        let (a, b) = (self.0.wait(), self.1.wait());
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
    }
}
