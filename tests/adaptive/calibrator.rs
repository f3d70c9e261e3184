//! What a calibrator measures, and that an interruption loses nothing.

use std::fs::{OpenOptions, read_to_string};
use std::io::Write;

use sage_attn::adaptive::{AdaptiveError, Calibrator, Choice, Figures, Measurements, Sampling, Site, Trial};
use sage_attn::metrics::Metrics;
use sage_attn::{Attention, Device, Layout, TensorView};
use sage_tests::generate::Random;

use crate::temporary;

/// `[1 or 2, heads, tokens, 64]` in f32.
struct Inputs {
    q: (Vec<f32>, [usize; 4]),
    k: (Vec<f32>, [usize; 4]),
    v: (Vec<f32>, [usize; 4]),
}

impl Inputs {
    fn new(seed: u64, [batch, heads_q, heads_kv]: [usize; 3], [tokens_q, tokens_kv]: [usize; 2]) -> Inputs {
        let mut random = Random(seed);
        let mut tensor = |heads, tokens| (random.normals(batch * heads * tokens * 64), [batch, heads, tokens, 64]);
        Inputs { q: tensor(heads_q, tokens_q), k: tensor(heads_kv, tokens_kv), v: tensor(heads_kv, tokens_kv) }
    }

    fn views(&self) -> [TensorView<'_>; 3] {
        [&self.q, &self.k, &self.v].map(|(values, shape)| TensorView::new(values, shape, Layout::Hnd).unwrap())
    }
}

fn candidates() -> Vec<Choice> {
    vec![Choice::INT4, "int8/block/none".parse().unwrap(), Choice::EXACT]
}

fn attention(causal: bool) -> Attention {
    Attention::new().causal(causal).device(Device::Cpu)
}

/// The figures of one call.
fn measure(inputs: &Inputs, attention: &Attention, sampling: Sampling, sample: usize) -> Vec<Figures> {
    let mut calibrator = Calibrator::new(candidates(), sampling).unwrap();
    let [q, k, v] = inputs.views();
    let site = Site { layer: 0, timestep: 0, sample };
    assert!(calibrator.observe(site, attention, &q, &k, &v).unwrap());
    let mut given = Calibrator::new(candidates(), sampling).unwrap();
    let exact = Choice::EXACT.apply(attention.clone()).forward(&q, &k, &v).unwrap().out;
    given.observe_with_exact(site, attention, [&q, &k, &v], &exact).unwrap();
    let figures = calibrator.measurements().records().next().unwrap().1.to_vec();
    let with_exact = given.measurements().records().next().unwrap().1;
    for (a, b) in figures.iter().zip(with_exact) {
        assert!((a.rel_l1 - b.rel_l1).abs() < 1e-5, "{a:?} {b:?}");
    }
    figures
}

/// Relative L1 of a candidate on some of the heads and rows, computed the long way round.
fn expected(inputs: &Inputs, attention: &Attention, candidate: Choice, heads: &[usize], rows: &[usize]) -> f64 {
    let [q, k, v] = inputs.views();
    let run = |choice: Choice| choice.apply(attention.clone()).forward(&q, &k, &v).unwrap().out.to_f32();
    let pick = |all: Vec<f32>| {
        let tokens = q.spec().shape[2];
        let mut picked = Vec::new();
        for head in heads {
            for row in rows {
                picked.extend_from_slice(&all[(head * tokens + row) * 64..][..64]);
            }
        }
        picked
    };
    let exact: Vec<f64> = pick(run(Choice::EXACT)).into_iter().map(f64::from).collect();
    Metrics::compare(&pick(run(candidate)), &exact, 64).rel_l1
}

#[test]
fn everything_is_measured_by_default() {
    for causal in [false, true] {
        let inputs = Inputs::new(1, [2, 4, 2], [200, 150]);
        let figures = measure(&inputs, &attention(causal), Sampling::default(), 0);
        let (heads, rows): (Vec<usize>, Vec<usize>) = ((0..8).collect(), (0..200).collect());
        for (figures, candidate) in figures.iter().zip(candidates()) {
            let expected = expected(&inputs, &attention(causal), candidate, &heads, &rows);
            assert!((figures.rel_l1 - expected).abs() < 1e-6, "{candidate}: {} {expected}", figures.rel_l1);
        }
        assert!(figures[0].rel_l1 > 2.0 * figures[1].rel_l1 && figures[1].rel_l1 > 0.01, "{figures:?}");
        assert!((figures[2].score() - 1.0).abs() < 1e-12, "{figures:?}");
    }
}

#[test]
fn heads_and_query_blocks_are_sampled_without_changing_what_is_measured() {
    let inputs = Inputs::new(2, [2, 4, 2], [500, 600]);
    let sampling = Sampling { heads: Some(2), query_blocks: Some(2), ..Sampling::default() };
    for causal in [false, true] {
        // Of four key/value heads 0 and 2, then 1 and 3, each with its two query heads; of four query
        // blocks 0 and 2.
        for (sample, heads) in [(0, [0, 1, 4, 5]), (1, [2, 3, 6, 7]), (2, [0, 1, 4, 5])] {
            let rows: Vec<usize> = (0..128).chain(256..384).collect();
            let figures = measure(&inputs, &attention(causal), sampling, sample);
            for (figures, candidate) in figures.iter().zip(candidates()) {
                let expected = expected(&inputs, &attention(causal), candidate, &heads, &rows);
                assert!((figures.rel_l1 - expected).abs() < 1e-5, "{candidate}: {} {expected}", figures.rel_l1);
            }
        }
    }
}

#[test]
fn calls_are_sampled() {
    let inputs = Inputs::new(3, [1, 1, 1], [16, 16]);
    let [q, k, v] = inputs.views();
    let sampling = Sampling { samples: 2, timesteps: 3, ..Sampling::default() };
    let mut calibrator = Calibrator::new(candidates(), sampling).unwrap();
    for sample in 0..4 {
        for timestep in 0..7 {
            let site = Site { layer: 5, timestep, sample };
            let wanted = sample % 2 == 0 && timestep % 3 == 0;
            assert_eq!(calibrator.wants(site), wanted);
            for again in [false, true] {
                let measured = calibrator.observe(site, &attention(true), &q, &k, &v).unwrap();
                assert_eq!(measured, wanted && !again);
            }
        }
    }
    assert_eq!(calibrator.measurements().records().len(), 6);
    assert_eq!(calibrator.measurements().cells().len(), 3);
}

/// Runs a model of three layers on four samples until `stop` calls have been measured.
fn run(calibrator: &mut Calibrator, stop: usize) -> usize {
    let mut measured = 0;
    for sample in 0..4 {
        for layer in 0..3 {
            if measured == stop {
                return measured;
            }
            let inputs = Inputs::new((sample * 3 + layer) as u64, [1, 2, 1], [40, 40]);
            let [q, k, v] = inputs.views();
            let site = Site { layer, timestep: 0, sample };
            measured += usize::from(calibrator.observe(site, &attention(true), &q, &k, &v).unwrap());
        }
    }
    measured
}

#[test]
fn an_interruption_loses_nothing() {
    let mut whole = Calibrator::new(candidates(), Sampling::default()).unwrap();
    assert_eq!(run(&mut whole, usize::MAX), 12);
    let path = temporary("resume.jsonl");
    let open = || Calibrator::resume(&path, "a model", candidates(), Sampling::default()).unwrap();
    for (stop, torn) in [(0, "{\"layer\""), (5, "{\"layer\":1,\"timestep\":0,\"sam"), (1, ""), (0, "\u{e9}")] {
        let mut calibrator = open();
        assert_eq!(run(&mut calibrator, stop), stop);
        drop(calibrator);
        // What being killed in the middle of a write leaves.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(torn.as_bytes()).unwrap();
    }
    let mut calibrator = open();
    assert_eq!(calibrator.measurements().records().len(), 6);
    assert_eq!(run(&mut calibrator, usize::MAX), 6);
    assert_eq!(calibrator.measurements(), whole.measurements());
    assert_eq!(&Measurements::load(&path).unwrap(), whole.measurements());
    assert_eq!(run(&mut open(), usize::MAX), 0);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn losses_are_kept_with_the_measurements() {
    let path = temporary("losses.jsonl");
    let open = || Calibrator::resume(&path, "a model", candidates(), Sampling::default()).unwrap();
    let trials = [Trial::everywhere(Choice::INT8), Trial::cell(3, 1, Choice::INT4), Trial::cell(3, 1, Choice::EXACT)];
    let mut calibrator = open();
    for (trial, loss) in trials.into_iter().zip([0.1, -0.2, 1.0 / 3.0]) {
        assert_eq!(calibrator.record_loss(trial, loss), Ok(true));
        assert_eq!(calibrator.record_loss(trial, 7.0), Ok(false));
    }
    assert!(matches!(
        calibrator.record_loss(Trial::cell(0, 0, Choice::INT4), f64::NAN),
        Err(AdaptiveError::Parameter { .. })
    ));
    run(&mut calibrator, 2);
    drop(calibrator);
    let again = open();
    assert_eq!(trials.map(|trial| again.measurements().loss(trial)), [Some(0.1), Some(-0.2), Some(1.0 / 3.0)]);
    assert_eq!(again.measurements().records().len(), 2);
    assert_eq!(&Measurements::load(&path).unwrap(), again.measurements());
    let text = read_to_string(&path).unwrap();
    for bad in [text.replacen("\"timestep\":1,", "", 1), text.replacen("\"loss\":0.1", "\"loss\":\"x\"", 1)] {
        std::fs::write(&path, bad).unwrap();
        assert!(matches!(Measurements::load(&path), Err(AdaptiveError::Journal { .. })));
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_file_of_other_measurements_is_refused_and_left_alone() {
    let path = temporary("other.jsonl");
    run(&mut Calibrator::resume(&path, "a model", candidates(), Sampling::default()).unwrap(), 2);
    let before = read_to_string(&path).unwrap();
    let fewer = Sampling { heads: Some(1), ..Sampling::default() };
    for (what, result) in [
        ("subject", Calibrator::resume(&path, "another", candidates(), Sampling::default())),
        ("candidates", Calibrator::resume(&path, "a model", vec![Choice::INT4], Sampling::default())),
        ("sampling", Calibrator::resume(&path, "a model", candidates(), fewer)),
    ] {
        match result {
            Err(AdaptiveError::JournalMismatch { what: found, .. }) => assert_eq!(found, what),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(read_to_string(&path).unwrap(), before);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_file_that_is_no_journal_is_left_alone() {
    let path = temporary("foreign");
    let resume = || Calibrator::resume(&path, "a model", candidates(), Sampling::default()).map(drop);
    for text in ["fn main() {}", "{}", "{\"format\":\"sage-attn measurements\",\"version\":7", "fn main() {}\n", "\n"] {
        std::fs::write(&path, text).unwrap();
        let error = resume();
        assert!(matches!(error, Err(AdaptiveError::Journal { line: 1, .. })), "{error:?}");
        assert_eq!(read_to_string(&path).unwrap(), text);
    }
    // What an interruption while the header is written leaves.
    for torn in ["", "{", "{\"format\":\"sage-attn meas"] {
        std::fs::write(&path, torn).unwrap();
        assert_eq!(resume(), Ok(()));
        assert_eq!(read_to_string(&path).unwrap().lines().count(), 1);
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn damaged_lines_are_named() {
    let path = temporary("damaged.jsonl");
    run(&mut Calibrator::resume(&path, "a model", candidates(), Sampling::default()).unwrap(), 3);
    let good = read_to_string(&path).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let first_twice = [lines[0], lines[1], lines[1], ""].join("\n");
    for (text, line) in [
        (good.replacen("\"cosine\"", "\"cosinus\"", 1), 2),
        (good.replacen("\"layer\":2", "\"layer\":-2", 1), 4),
        (good.replacen("sage-attn measurements", "something", 1).replacen('{', "[", 1), 1),
        (first_twice, 3),
    ] {
        std::fs::write(&path, &text).unwrap();
        let resumed = Calibrator::resume(&path, "a model", candidates(), Sampling::default()).map(drop);
        for result in [resumed, Measurements::load(&path).map(drop)] {
            match result {
                Err(AdaptiveError::Journal { line: found, .. }) => assert_eq!(found, line, "{text}"),
                other => panic!("{other:?} for {text}"),
            }
        }
    }
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(Measurements::load(&path), Err(AdaptiveError::File { .. })));
}

#[test]
fn bad_settings_and_shapes_are_errors() {
    let zero = |what| match what {
        "samples" => Sampling { samples: 0, ..Sampling::default() },
        "timesteps" => Sampling { timesteps: 0, ..Sampling::default() },
        "heads" => Sampling { heads: Some(0), ..Sampling::default() },
        _ => Sampling { query_blocks: Some(0), ..Sampling::default() },
    };
    for what in ["samples", "timesteps", "heads", "query_blocks"] {
        let error = Calibrator::new(candidates(), zero(what)).map(drop);
        assert_eq!(error, Err(AdaptiveError::SamplingZero { what }));
    }
    let inputs = Inputs::new(4, [1, 2, 1], [16, 16]);
    let other = Inputs::new(4, [1, 3, 2], [16, 16]);
    let [q, k, v] = inputs.views();
    let mut calibrator = Calibrator::new(candidates(), Sampling::default()).unwrap();
    let site = Site { layer: 0, timestep: 0, sample: 0 };
    let mixed = [&other.views()[0], &other.views()[1], &v];
    assert!(calibrator.observe(site, &attention(true), mixed[0], mixed[1], mixed[2]).is_err());
    let exact = sage_attn::Tensor::zeros(sage_attn::DType::F32, [1, 2, 15, 64]).unwrap();
    let error = calibrator.observe_with_exact(Site { layer: 1, ..site }, &attention(true), [&q, &k, &v], &exact);
    assert!(error.unwrap_err().to_string().contains("[1, 2, 15, 64]"));
    assert!(calibrator.wants(Site { layer: 1, ..site }));
}
