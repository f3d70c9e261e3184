//! Writing what was computed: a query block's output, or its state if there are more keys.

use sage_spec::limits::MAX_HEAD_DIM;

use super::attend::Block;
use super::isa::{Isa, Task};
use super::operands::Operands;
use super::output::{Part, Target};
use super::split::store;

/// Writes a query block.
pub struct Finish<'a, 'o, O, I: Isa> {
    pub operands: &'a O,
    pub part: &'a mut Part<'o>,
    pub block: &'a Block<I>,
}

impl<O: Operands, J: Isa> Task for Finish<'_, '_, O, J> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Finish { operands, part, block } = self;
        let mut row = [0.0; MAX_HEAD_DIM];
        let row = &mut row[..operands.dims().head_dim_padded()];
        let sums: &[I::Panel] = bytemuck::cast_slice(&block.sum);
        let panels: &[f32] = bytemuck::cast_slice(&block.out);
        for index in 0..part.segment.rows {
            let bits = isa.load(&sums[index]);
            let sum = isa.sum_lanes(isa.add(isa.as_f(bits[0]), isa.as_f(bits[1])));
            for (to, panel) in row.chunks_exact_mut(I::PANEL).zip(panels.chunks_exact(sums.len() * I::PANEL)) {
                to.copy_from_slice(&panel[index * I::PANEL..][..I::PANEL]);
            }
            finish_row(operands, part, index, block.max[index], sum, row);
        }
    }
}

/// Writes row `index` of a query block: its maximum in log2 units, its sum and its unnormalized output.
#[inline(always)]
pub fn finish_row<O: Operands>(operands: &O, part: &mut Part, index: usize, max: f32, sum: f32, row: &mut [f32]) {
    let (segment, head_dim) = (&part.segment, operands.dims().head_dim_v);
    match &mut part.target {
        Target::State(state) => store(state, index, max, sum, row),
        // The row sees no key; lse already says so.
        Target::Rows(out, _) if sum == 0.0 => {
            row.fill(0.0);
            out.write(index * head_dim, &row[..head_dim]);
        }
        Target::Rows(out, lse) => {
            operands.finish(segment, 1.0 / sum, row);
            out.write(index * head_dim, &row[..head_dim]);
            lse[index] = (max + sum.log2()) * std::f32::consts::LN_2 + operands.lse_shift(segment, index);
        }
    }
}
