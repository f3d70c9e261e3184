//! Fragment maps of the `m16n8` tensor-core shapes (PTX ISA, "Matrix Fragments for mma.m16n8k*"), with
//! `g = lane / 4` and `t = lane % 4`.

/// Row of accumulator element `element` (0..4) of lane `lane`.
#[inline(always)]
pub const fn accumulator_row(lane: u32, element: u32) -> u32 {
    lane / 4 + 8 * (element / 2)
}

/// Column of accumulator element `element` (0..4) of lane `lane`.
#[inline(always)]
pub const fn accumulator_column(lane: u32, element: u32) -> u32 {
    2 * (lane % 4) + element % 2
}

/// (lane, element) that holds accumulator row `row`, column `column`.
#[inline(always)]
pub const fn accumulator_owner(row: u32, column: u32) -> (u32, u32) {
    (row % 8 * 4 + column / 2, row / 8 * 2 + column % 2)
}

/// Row and 16-byte chunk whose address lane `lane` gives to `ldmatrix.x4` so that the four registers
/// are the A operand of a 16-row block: rows 0–7 and 8–15 of the first 16 bytes of K, then of the second.
#[inline(always)]
pub const fn ldmatrix_a(lane: u32) -> (u32, u32) {
    (lane % 8 + (lane / 8 % 2) * 8, lane / 16)
}

/// Row and 16-byte chunk for `ldmatrix.x4` so that the registers are the B operands of 32 bytes of K for
/// columns 0–7 (registers 0, 1) and 8–15 (registers 2, 3).
#[inline(always)]
pub const fn ldmatrix_b(lane: u32) -> (u32, u32) {
    (lane % 8 + lane / 16 * 8, lane / 8 % 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sage_spec::layout::v_slot;

    #[test]
    fn accumulator_map_and_inverse_agree() {
        for lane in 0..32 {
            for element in 0..4 {
                let (row, column) = (accumulator_row(lane, element), accumulator_column(lane, element));
                assert!(row < 16 && column < 8);
                assert_eq!(accumulator_owner(row, column), (lane, element));
            }
        }
    }

    /// The lane that holds P for a token after QK needs it, in the 8-bit A operand, in slots
    /// `4t..4t+4`: that is what the token order of V is for.
    #[test]
    fn a_lane_holds_the_tokens_of_its_own_slots() {
        for lane in 0..32u32 {
            for block in 0..2u32 {
                for element in 0..2 {
                    let token = 8 * block + accumulator_column(lane, element);
                    assert_eq!(v_slot(token as usize) as u32, 4 * (lane % 4) + 2 * block + element);
                }
            }
        }
    }

    #[test]
    fn per_thread_scale_groups_are_what_one_lane_holds() {
        use sage_spec::ScaleGranularity::PerThread;
        for lane in 0..32u32 {
            for m in 0..2u32 {
                for element in 0..4 {
                    let row = 16 * m + accumulator_row(lane, element);
                    assert_eq!(PerThread.q_group(row as usize) as u32, lane / 4);
                    for block in 0..8u32 {
                        let key = 8 * block + accumulator_column(lane, element);
                        assert_eq!(PerThread.k_group(key as usize) as u32, lane % 4);
                    }
                }
            }
        }
    }
}
