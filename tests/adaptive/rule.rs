//! The rules, as properties of the plans they make.

use proptest::prelude::*;
use sage_attn::Precision;
use sage_attn::adaptive::{AdaptiveError, Choice, Figures, Measurements, PrecisionPlan, Rule, Site, Speeds, Trial};

use crate::figures;

const CANDIDATES: [Choice; 2] = [Choice::INT4, Choice::INT8];

/// Measurements of a grid of cells, each with the relative L1 of INT4 and of INT8.
fn measurements(timesteps: usize, errors: &[(f64, f64)]) -> Measurements {
    let mut measurements = Measurements::new(CANDIDATES.to_vec()).unwrap();
    for (index, &(int4, int8)) in errors.iter().enumerate() {
        let site = Site { layer: index / timesteps, timestep: index % timesteps, sample: 0 };
        measurements.insert(site, vec![figures(int4), figures(int8)]).unwrap();
    }
    measurements
}

/// INT4 is worse than INT8, mostly.
fn errors() -> impl Strategy<Value = Vec<(f64, f64)>> {
    prop::collection::vec((0.0..0.4f64, 0.0..0.1f64), 1..40)
}

/// Which cells are INT4.
fn int4(plan: &PrecisionPlan, timesteps: usize, cells: usize) -> Vec<bool> {
    (0..cells).map(|i| plan.at(i / timesteps, i % timesteps).precision() == Precision::Int4).collect()
}

/// Mean relative L1 of a plan.
fn mean_error(errors: &[(f64, f64)], int4: &[bool]) -> f64 {
    let sum: f64 = errors.iter().zip(int4).map(|(error, &int4)| if int4 { error.0 } else { error.1 }).sum();
    sum / errors.len() as f64
}

proptest! {
    #[test]
    fn the_percentile_gives_int8_to_the_worst(
        errors in errors(), percent in 0.0..=100.0f64, timesteps in 1usize..6,
    ) {
        let measurements = measurements(timesteps, &errors);
        let plan = Rule::percentile(percent).plan(&measurements, &Speeds::unmeasured()).unwrap();
        let int4 = &int4(&plan, timesteps, errors.len());
        let expected = (percent * errors.len() as f64 / 100.0).ceil() as usize;
        prop_assert_eq!(int4.iter().filter(|&&int4| !int4).count(), expected);
        let errors = &errors;
        let score = |i: usize| figures(errors[i].0).score();
        let of = |wanted: bool| (0..errors.len()).filter(move |&i| int4[i] == wanted).map(score);
        let worst_int4 = of(true).fold(f64::INFINITY, f64::min);
        let best_int8 = of(false).fold(f64::NEG_INFINITY, f64::max);
        prop_assert!(best_int8 <= worst_int4);
    }

    #[test]
    fn the_budget_is_kept_and_used(errors in errors(), budget in 0.001..0.3f64, timesteps in 1usize..6) {
        let measurements = measurements(timesteps, &errors);
        let plan = Rule::budget(budget).plan(&measurements, &Speeds::unmeasured()).unwrap();
        let chosen = int4(&plan, timesteps, errors.len());
        let error = mean_error(&errors, &chosen);
        let without = mean_error(&errors, &vec![false; errors.len()]);
        if without > budget {
            prop_assert!(plan.origin().note.as_ref().unwrap().contains("the budget is not met"));
            prop_assert!(!chosen.contains(&true));
        } else {
            prop_assert!(error <= budget * (1.0 + 1e-9), "{error} > {budget}");
            // No other set of cells is larger: the cheapest ones are the most that fit.
            let mut costs: Vec<f64> = errors.iter().map(|(a, b)| (a - b).max(0.0)).collect();
            costs.sort_by(f64::total_cmp);
            let mut left = (budget - without) * errors.len() as f64;
            let most = costs.iter().take_while(|&&cost| { left -= cost; left >= -1e-9 }).count();
            let count = chosen.iter().filter(|&&int4| int4).count();
            prop_assert!(count == most || count + 1 == most, "{count} of {most}"); // rounding of the last
        }
    }

    #[test]
    fn a_larger_budget_never_has_less_int4(errors in errors(), a in 0.001..0.3f64, b in 0.001..0.3f64) {
        let measurements = measurements(1, &errors);
        let share = |budget| {
            Rule::budget(budget).plan(&measurements, &Speeds::unmeasured()).unwrap().int4_share()
        };
        prop_assert!(share(a.min(b)) <= share(a.max(b)));
    }

    #[test]
    fn a_floor_is_never_undercut(errors in errors(), floor in 0.5..1.0f64) {
        let measurements = measurements(1, &errors);
        let rules = [
            Rule::Percentile { percent: 10.0, floor: Some(floor) },
            Rule::Budget { rel_l1: 0.2, floor: Some(floor) },
        ];
        for rule in rules {
            let plan = rule.plan(&measurements, &Speeds::unmeasured()).unwrap();
            for (error, int4) in errors.iter().zip(int4(&plan, 1, errors.len())) {
                prop_assert!(!int4 || figures(error.0).score() >= floor);
            }
        }
    }

    #[test]
    fn without_a_gain_there_is_no_int4(errors in errors(), speedup in 0.5..1.01f64) {
        let measurements = measurements(1, &errors);
        for rule in [Rule::percentile(0.0), Rule::budget(10.0)] {
            let plan = rule.plan(&measurements, &Speeds::assumed("cuda:0", speedup)).unwrap();
            prop_assert_eq!(plan.int4_share(), 0.0);
            let note = plan.origin().note.clone().unwrap();
            prop_assert!(note.contains("on cuda:0 INT4 is") && note.contains("gain nothing"), "{}", note);
            let plan = rule.plan(&measurements, &Speeds::assumed("cuda:0", 1.5)).unwrap();
            prop_assert_eq!(plan.int4_share(), 1.0);
        }
    }
}

/// Measurements of layers whose INT4 costs the model these losses, with `base` for INT8 everywhere.
fn with_losses(base: f64, losses: &[Option<f64>]) -> Measurements {
    let mut measurements = measurements(1, &vec![(0.1, 0.02); losses.len()]);
    measurements.insert_loss(Trial::everywhere(Choice::INT8), base).unwrap();
    for (layer, loss) in losses.iter().enumerate() {
        if let Some(loss) = loss {
            measurements.insert_loss(Trial::cell(layer, 0, Choice::INT4), *loss).unwrap();
        }
    }
    measurements
}

#[test]
fn a_loss_budget_takes_the_layers_that_cost_the_model_least() {
    // Alone they cost 0.01, 0.001, 0.002, nothing, and (by chance) less than nothing beyond INT8's 0.001.
    let losses = [Some(0.011), Some(0.002), Some(0.003), None, Some(0.0009), Some(f64::MAX)];
    let measurements = with_losses(0.001, &losses);
    let int4 = |budget: f64| {
        let plan = Rule::loss(budget).plan(&measurements, &Speeds::unmeasured()).unwrap();
        (0..6).filter(|&layer| plan.at(layer, 0) == Choice::INT4).collect::<Vec<_>>()
    };
    assert_eq!(int4(0.0015), [4]);
    assert_eq!(int4(0.0021), [1, 4]);
    assert_eq!(int4(0.0041), [1, 2, 4]);
    assert_eq!(int4(0.02), [0, 1, 2, 4]);
    let plan = Rule::loss(0.0005).plan(&measurements, &Speeds::unmeasured()).unwrap();
    assert!(plan.int4_share() == 0.0 && plan.origin().note.as_ref().unwrap().contains("the loss is 0.100 %"));
    let untried = self::measurements(1, &[(0.1, 0.02)]);
    let error = Rule::loss(0.01).plan(&untried, &Speeds::unmeasured());
    assert_eq!(error.map(drop), Err(AdaptiveError::NoTrials));
}

#[test]
fn timesteps_between_measured_ones_follow_the_one_before() {
    let mut measurements = Measurements::new(CANDIDATES.to_vec()).unwrap();
    for (timestep, error) in [(4, 0.3), (8, 0.01), (12, 0.01), (16, 0.4)] {
        let figures = vec![figures(error), figures(0.005)];
        measurements.insert(Site { layer: 2, timestep, sample: 0 }, figures).unwrap();
    }
    let plan = Rule::percentile(50.0).plan(&measurements, &Speeds::unmeasured()).unwrap();
    let (_, decisions) = plan.layers().next().unwrap();
    assert_eq!(decisions.iter().map(|d| d.from_timestep).collect::<Vec<_>>(), [0, 8, 16]);
    for (timestep, choice) in [(0, Choice::INT8), (7, Choice::INT8), (8, Choice::INT4), (15, Choice::INT4)] {
        assert_eq!(plan.at(2, timestep), choice);
    }
    assert_eq!((plan.at(2, 16), plan.at(2, 99), plan.at(0, 0)), (Choice::INT8, Choice::INT8, Choice::INT8));
    assert_eq!(plan.timesteps(), 17);
}

#[test]
fn samples_are_averaged_and_the_best_candidate_of_a_precision_is_taken() {
    let other: Choice = "int4/thread/none".parse().unwrap();
    let mut measurements = Measurements::new(vec![Choice::INT4, other, Choice::INT8]).unwrap();
    for (layer, sample, errors) in [
        (0, 0, [0.10, 0.12, 0.01]),
        (0, 1, [0.20, 0.10, 0.01]), // on average the other one is better
        (1, 0, [0.10, 0.20, 0.01]),
        (1, 1, [0.10, 0.20, 0.01]),
    ] {
        let figures = errors.map(figures).to_vec();
        measurements.insert(Site { layer, timestep: 0, sample }, figures).unwrap();
    }
    let plan = Rule::percentile(0.0).plan(&measurements, &Speeds::unmeasured()).unwrap();
    assert_eq!((plan.at(0, 0), plan.at(1, 0)), (other, Choice::INT4));
    assert_eq!(plan.origin().samples, 2);
    let spread = measurements.cells()[0].spreads[0];
    assert!((spread.rel_l1() - 0.15).abs() < 1e-12);
    assert!((spread.worst_row_rel_l1() - 0.40).abs() < 1e-12);
    let (a, b) = (figures(0.10).score(), figures(0.20).score());
    assert!((spread.score_deviation() - (a - b).abs() / 2.0).abs() < 1e-9);
}

#[test]
fn an_output_that_is_not_finite_is_never_chosen_while_another_is() {
    let nan = Figures { cosine: f64::NAN, rel_l1: f64::NAN, rmse: f64::NAN, worst_row_rel_l1: f64::NAN };
    let mut measurements = Measurements::new(vec![Choice::INT4, Choice::INT8, Choice::EXACT]).unwrap();
    let site = |layer| Site { layer, timestep: 0, sample: 0 };
    measurements.insert(site(0), vec![nan, figures(0.02), figures(0.0)]).unwrap();
    measurements.insert(site(1), vec![nan, nan, figures(0.0)]).unwrap();
    measurements.insert(site(2), vec![figures(0.1), figures(0.02), figures(0.0)]).unwrap();
    for rule in [Rule::Percentile { percent: 0.0, floor: Some(0.1) }, Rule::Budget { rel_l1: 0.5, floor: Some(0.1) }] {
        let plan = rule.plan(&measurements, &Speeds::unmeasured()).unwrap();
        assert_eq!(plan.at(0, 0), Choice::INT8);
        assert_eq!(plan.at(1, 0), Choice::EXACT);
        assert_eq!(plan.at(2, 0), Choice::INT4);
    }
    let plan = Rule::percentile(0.0).plan(&measurements, &Speeds::unmeasured()).unwrap();
    assert_eq!(plan.at(0, 0), Choice::INT8);
}

#[test]
fn what_cannot_be_planned_is_an_error() {
    let empty = Measurements::new(CANDIDATES.to_vec()).unwrap();
    let plan = |rule: Rule, measurements: &Measurements| rule.plan(measurements, &Speeds::unmeasured()).map(drop);
    assert_eq!(plan(Rule::percentile(30.0), &empty), Err(AdaptiveError::NoMeasurements));
    let some = measurements(1, &[(0.1, 0.02)]);
    for rule in [
        Rule::percentile(-1.0),
        Rule::percentile(100.5),
        Rule::percentile(f64::NAN),
        Rule::budget(0.0),
        Rule::budget(f64::INFINITY),
        Rule::loss(0.0),
        Rule::loss(f64::NAN),
        Rule::Percentile { percent: 30.0, floor: Some(1.5) },
        Rule::Budget { rel_l1: 0.1, floor: Some(f64::NAN) },
    ] {
        assert!(matches!(plan(rule, &some), Err(AdaptiveError::Parameter { .. })), "{rule:?}");
    }
    let mut int8_only = Measurements::new(vec![Choice::INT8]).unwrap();
    int8_only.insert(Site { layer: 0, timestep: 0, sample: 0 }, vec![figures(0.1)]).unwrap();
    let error = plan(Rule::percentile(30.0), &int8_only);
    assert!(matches!(error, Err(AdaptiveError::NoCandidate { precision: "int4", .. })), "{error:?}");
    assert!(matches!(Measurements::new(vec![]), Err(AdaptiveError::Candidates { .. })));
    assert!(matches!(Measurements::new(vec![Choice::INT8; 2]), Err(AdaptiveError::Candidates { .. })));
}
