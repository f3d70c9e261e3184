//! Memory whose vectors do not cross cache lines.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;

/// Bytes of a cache line, and of the largest vector.
const LINE: usize = 64;

/// Zeros that begin with a cache line. Allocators align to 16 bytes, and then every vector of 64 is two accesses.
pub struct Buffer<T> {
    room: Vec<u32>,
    /// Lanes before the first line.
    first: usize,
    /// Lanes in use.
    lanes: usize,
    of: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// `count` zeros; `T` consists of 32-bit lanes.
    pub fn new(count: usize) -> Self {
        let lanes = count * size_of::<T>() / 4;
        let room = vec![0; lanes + LINE / 4 - 1];
        let first = room.as_ptr().align_offset(LINE).min(LINE / 4 - 1);
        Buffer { room, first, lanes, of: PhantomData }
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.room[self.first..self.first + self.lanes])
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.room[self.first..self.first + self.lanes])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeros() {
        for count in [0, 1, 5, 1000] {
            let mut buffer = Buffer::<[u32; 8]>::new(count);
            assert_eq!(*buffer, vec![[0; 8]; count]);
            assert_eq!(buffer.as_ptr().align_offset(LINE), 0);
            buffer.fill([1; 8]);
            assert_eq!(*buffer, vec![[1; 8]; count]);
        }
    }
}
