//! Faults of the CPU back end.

use super::killers::*;
use crate::fault::Fault;

const ATTEND: &str = "host/src/cpu/attend.rs";
const SOFTMAX: &str = "host/src/cpu/softmax.rs";

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "cpu-mask-one-key-late",
        what: "a row sees the first key that it should not",
        file: "host/src/cpu/mask.rs",
        text: "true => Mask { first: «keys_of_first - tile as i64», step: 1, real },",
        bad: "keys_of_first - tile as i64 + 1",
        tests: &[CPUE, CPUQ],
    },
    Fault {
        name: "cpu-tail-visible",
        what: "keys beyond the last are visible",
        file: ATTEND,
        text: "let real = «TILE.min(keys.end - first)»;",
        bad: "TILE",
        tests: &[CPUE, CPUQ, APIINT8],
    },
    Fault {
        name: "cpu-sum-not-rescaled",
        what: "older sums keep their scale when the row maximum rises",
        file: SOFTMAX,
        text: "let correction = if row_max == max[row] { 1.0 } else { «exp2(max[row] - row_max)» };",
        bad: "if max[row] < -1e29 { 0.0 } else { 1.0 }",
        tests: &[CPUE, CPUQ, APIINT8],
    },
    Fault {
        name: "cpu-delta-s-ignored",
        what: "scores of smoothed queries lack ΔS",
        file: SOFTMAX,
        text: "let x = if «delta.is_empty()» {",
        bad: "delta.len() < 1000",
        tests: &[CPUQ, APIPREC, APIINT8],
    },
    Fault {
        name: "cpu-groups-interleaved",
        what: "query heads take key heads in turn instead of in groups",
        file: "host/src/cpu/output.rs",
        text: "«dims.head_kv(self.head_q)»",
        bad: "self.head_q % dims.num_heads_kv",
        tests: &[CPUE, CPUQ, APIINT8],
    },
    Fault {
        name: "cpu-lse-in-base-2",
        what: "the log-sum-exp is in units of log2",
        file: "host/src/cpu/finish.rs",
        text: "lse[index] = (max + sum.log2()) * «std::f32::consts::LN_2»",
        bad: "1.0",
        tests: &[CPUE, CPUQ],
    },
    Fault {
        name: "cpu-lse-without-the-mean",
        what: "the log-sum-exp lacks what smoothing K took from the scores",
        file: "host/src/cpu/finish.rs",
        text: "+ «operands.lse_shift(segment, index)»;",
        bad: "0.0",
        tests: &[CPUQ, APIPREC, APIINT8],
    },
    Fault {
        name: "cpu-v-in-stored-order",
        what: "tokens of FP8 V are taken in the order in which they are stored",
        file: "host/src/cpu/quantized.rs",
        text: "«[pair(0), pair(2), pair(4), pair(6), pair(1), pair(3), pair(5), pair(7)]»",
        bad: "[pair(0), pair(1), pair(2), pair(3), pair(4), pair(5), pair(6), pair(7)]",
        tests: &[CPUQ, APIPREC, APIINT8],
    },
];
