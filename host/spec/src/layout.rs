//! Orders of elements inside the quantized buffers.

/// Slot of token `token` (mod 16) inside its group of 16 tokens of FP8 V.
///
/// After QK a lane holds P for tokens `2t, 2t+1` of two neighbouring `n8` blocks; the 8-bit A operand
/// of `m16n8k32` wants four consecutive slots `4t..4t+4` in one register. Storing V's tokens in this
/// order makes the two agree without any exchange between lanes: a matrix product is invariant to a
/// common permutation of its contraction axis.
pub const fn v_slot(token: usize) -> usize {
    let r = token % 16;
    token / 16 * 16 + (r / 8) * 2 + ((r / 2) % 4) * 4 + r % 2
}

/// Token stored in slot `slot`: inverse of [`v_slot`].
pub const fn v_token(slot: usize) -> usize {
    let s = slot % 16;
    slot / 16 * 16 + ((s / 2) % 2) * 8 + (s / 4) * 2 + s % 2
}

/// Position of key `key` inside its 64-key block of ΔS.
///
/// A lane needs the columns `8b + 2t + {0, 1}` of all eight `n8` blocks `b`; in this order they are
/// four 16-byte vectors, and the four lanes of a quad read neighbouring ones.
pub const fn delta_s_slot(key: usize) -> usize {
    let column = key % 64;
    let (block, lane, half) = (column / 8, column % 8 / 2, column % 2);
    key / 64 * 64 + (block / 2) * 16 + lane * 4 + (block % 2) * 2 + half
}

/// Key stored at position `slot` of ΔS: inverse of [`delta_s_slot`].
pub const fn delta_s_key(slot: usize) -> usize {
    let s = slot % 64;
    let (pair, lane, odd, half) = (s / 16, s % 16 / 4, s % 4 / 2, s % 2);
    slot / 64 * 64 + (pair * 2 + odd) * 8 + lane * 2 + half
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v_slots_are_a_permutation_with_this_inverse() {
        for token in 0..256 {
            assert_eq!(v_token(v_slot(token)), token);
            assert_eq!(v_slot(token) / 16, token / 16);
        }
        let order: [usize; 16] = core::array::from_fn(v_token);
        assert_eq!(order, [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]);
    }

    #[test]
    fn delta_s_slots_are_a_permutation_with_this_inverse() {
        for key in 0..256 {
            assert_eq!(delta_s_key(delta_s_slot(key)), key);
            assert_eq!(delta_s_slot(key) / 64, key / 64);
        }
    }
}
