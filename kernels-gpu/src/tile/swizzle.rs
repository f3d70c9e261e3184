//! XOR swizzles of shared-memory tiles.
//!
//! `ldmatrix` reads eight rows of 16 bytes at a time. In a plain row-major tile they would fall into
//! the same banks; permuting the 16-byte chunks of each row by its row number spreads them over all
//! 32 banks, and the same permutation keeps the 16-byte stores of `cp.async` conflict-free.

/// Byte offset of 16-byte chunk `chunk` of row `row` in a tile with rows of `row_bytes` bytes
/// (32, 64, 128 or 256).
///
/// Rows of 128 bytes and more permute eight chunks by the row; two rows of 64 bytes, or four of 32,
/// share a 128-byte line and are permuted alike.
#[inline(always)]
pub const fn chunk_offset(row_bytes: u32, row: u32, chunk: u32) -> u32 {
    let permuted = match row_bytes {
        32 => chunk ^ ((row >> 2) & 1),
        64 => chunk ^ ((row >> 1) & 3),
        _ => chunk ^ (row & 7),
    };
    row * row_bytes + permuted * 16
}

#[cfg(test)]
mod tests {
    use super::chunk_offset;

    #[test]
    fn every_chunk_has_its_own_place() {
        for row_bytes in [32, 64, 128, 256] {
            let rows = 64;
            let mut seen = vec![false; (rows * row_bytes / 16) as usize];
            for row in 0..rows {
                for chunk in 0..row_bytes / 16 {
                    let place = (chunk_offset(row_bytes, row, chunk) / 16) as usize;
                    assert!(!seen[place], "row_bytes {row_bytes} row {row} chunk {chunk}");
                    seen[place] = true;
                }
            }
        }
    }

    /// Eight consecutive rows (a matrix of `ldmatrix`), the same logical chunk: eight different groups
    /// of four banks.
    #[test]
    fn a_matrix_of_ldmatrix_touches_every_bank_once() {
        for row_bytes in [32, 64, 128, 256] {
            for first in (0..64).step_by(8) {
                for chunk in 0..row_bytes / 16 {
                    let mut banks: Vec<u32> =
                        (first..first + 8).map(|row| chunk_offset(row_bytes, row, chunk) / 16 % 8).collect();
                    banks.sort_unstable();
                    assert_eq!(banks, [0, 1, 2, 3, 4, 5, 6, 7], "row_bytes {row_bytes} rows {first}.. chunk {chunk}");
                }
            }
        }
    }
}
