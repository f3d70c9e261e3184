//! Which keys of a tile the rows of a query block see.

/// Keys `0..keys(row)` of a tile are visible to `row`; never fewer to a later row.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    /// Keys row 0 sees, counted from the tile's first; negative if the tile is ahead of it.
    first: i64,
    /// 1 under the causal mask, else 0.
    step: i64,
    /// Keys of the tile that exist.
    real: i64,
}

impl Mask {
    /// Row `i` sees `keys_of_first + i` keys if `causal`, else all; the tile has `real` keys from `tile` on.
    pub fn new(causal: bool, keys_of_first: i64, tile: usize, real: usize) -> Mask {
        let real = real as i64;
        match causal {
            true => Mask { first: keys_of_first - tile as i64, step: 1, real },
            false => Mask { first: real, step: 0, real },
        }
    }

    /// Keys of the tile that `row` sees.
    #[inline(always)]
    pub fn keys(&self, row: usize) -> usize {
        (self.first + self.step * row as i64).clamp(0, self.real) as usize
    }

    /// What rows from `row` on see, counted from it.
    pub fn after_rows(&self, row: usize) -> Mask {
        Mask { first: self.first + self.step * row as i64, ..*self }
    }

    /// The first of `rows` rows that sees a key; `rows` if none does.
    pub fn first_row(&self, rows: usize) -> usize {
        match self.step {
            0 if self.real > 0 => 0,
            0 => rows,
            _ => ((1 - self.first).max(0) as usize).min(rows),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_see_what_the_definition_says() {
        for causal in [false, true] {
            for (seqlen_q, seqlen_kv) in [(5, 9), (9, 5), (7, 7), (1, 8)] {
                for tile in [0, 4, 8] {
                    let real = (seqlen_kv - tile as i64).clamp(0, 4) as usize;
                    let mask = Mask::new(causal, seqlen_kv - seqlen_q + 1, tile, real);
                    let sees = |row: i64, key: i64| key < seqlen_kv && (!causal || key <= row + seqlen_kv - seqlen_q);
                    let mut first = seqlen_q as usize;
                    for row in (0..seqlen_q).rev() {
                        let count = (tile as i64..tile as i64 + 4).filter(|&key| sees(row, key)).count();
                        assert_eq!(mask.keys(row as usize), count, "row {row} tile {tile}");
                        if count > 0 {
                            first = row as usize;
                        }
                    }
                    assert_eq!(mask.first_row(seqlen_q as usize), first);
                }
            }
        }
    }
}
