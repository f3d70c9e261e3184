//! Plans as values and as files.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sage_attn::Attention;
use sage_attn::adaptive::{AdaptiveError, Choice, Decision, Origin, PrecisionPlan, Rule};

use crate::{choices, temporary};

fn choice() -> impl Strategy<Value = Choice> {
    prop::sample::select(choices())
}

fn rule() -> impl Strategy<Value = Option<Rule>> {
    let floor = || prop::option::of(0.0..=1.0f64);
    prop_oneof![
        Just(None),
        (0.0..=100.0f64, floor()).prop_map(|(percent, floor)| Some(Rule::Percentile { percent, floor })),
        (1e-6..10.0f64, floor()).prop_map(|(rel_l1, floor)| Some(Rule::Budget { rel_l1, floor })),
        (1e-6..10.0f64, floor()).prop_map(|(loss, floor)| Some(Rule::Loss { loss, floor })),
    ]
}

/// Plans of up to 6 layers and 20 timesteps.
fn plan() -> impl Strategy<Value = PrecisionPlan> {
    let decisions = (prop::collection::btree_set(1usize..20, 0..5), prop::collection::vec(choice(), 6), 0.0..1.0f64);
    let layers = prop::collection::btree_map(0usize..12, decisions, 0..6);
    let origin = ("[ -~é]{0,12}", rule(), 0usize..100, prop::option::of("[ -~]{0,20}"));
    (layers, choice(), origin).prop_map(|(layers, default, (model, rule, samples, note))| {
        let layers = layers
            .into_iter()
            .map(|(layer, (starts, choices, score))| {
                let starts = std::iter::once(0).chain(starts);
                let decision = |(from_timestep, choice)| Decision { from_timestep, choice, score: Some(score) };
                (layer, starts.zip(choices).map(decision).collect())
            })
            .collect();
        let origin = Origin { model, device: "cpu".into(), samples, rule, note };
        PrecisionPlan::new(origin, 20, default, layers).unwrap()
    })
}

proptest! {
    #[test]
    fn json_gives_back_the_plan(plan in plan()) {
        prop_assert_eq!(PrecisionPlan::from_json(&plan.to_json()).unwrap(), plan);
    }

    #[test]
    fn a_decision_holds_until_the_next(plan in plan(), layer in 0usize..13, timestep in 0usize..40) {
        let mut expected = plan.default_choice();
        for (_, decisions) in plan.layers().filter(|&(of, _)| of == layer) {
            for decision in decisions {
                if decision.from_timestep <= timestep {
                    expected = decision.choice;
                }
            }
        }
        prop_assert_eq!(plan.at(layer, timestep), expected);
    }

    #[test]
    fn the_share_counts_layers_and_timesteps(plan in plan()) {
        let layers: Vec<usize> = plan.layers().map(|(layer, _)| layer).collect();
        let cells = layers.iter().flat_map(|&layer| (0..20).map(move |timestep| (layer, timestep)));
        let int4 = |(layer, timestep)| plan.at(layer, timestep).precision_name() == "int4";
        if !layers.is_empty() {
            let share = cells.clone().filter(|&cell| int4(cell)).count() as f64 / cells.count() as f64;
            prop_assert!((plan.int4_share() - share).abs() < 1e-12);
        }
    }

    #[test]
    fn text_gives_back_the_choice(choice in choice()) {
        prop_assert_eq!(choice.to_string().parse::<Choice>().unwrap(), choice);
    }
}

#[test]
fn files_are_replaced_whole() {
    let path = temporary("plan.json");
    for choice in [Choice::INT4, Choice::INT8] {
        let plan = PrecisionPlan::uniform(choice);
        plan.save(&path).unwrap();
        assert_eq!(PrecisionPlan::load(&path).unwrap(), plan);
    }
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(PrecisionPlan::load(&path), Err(AdaptiveError::File { action: "read", .. })));
    let nowhere = path.join("x/plan.json");
    let error = PrecisionPlan::uniform(Choice::INT8).save(&nowhere);
    assert!(matches!(error, Err(AdaptiveError::File { action: "write", .. })), "{error:?}");
}

#[test]
fn a_choice_sets_precision_granularity_and_smoothing() {
    for choice in choices() {
        let expected = Attention::new()
            .causal(true)
            .precision(choice.precision())
            .granularity(choice.granularity())
            .smoothing(choice.smoothing());
        assert_eq!(choice.apply(Attention::new().causal(true)), expected);
    }
}

/// A plan with `text` in place of `from`.
fn with(from: &str, text: &str) -> Result<PrecisionPlan, AdaptiveError> {
    let decision = |from_timestep, choice| Decision { from_timestep, choice, score: None };
    let layers = BTreeMap::from([
        (1, vec![decision(0, Choice::INT8), decision(5, Choice::INT4)]),
        (3, vec![decision(0, Choice::EXACT)]),
    ]);
    let json = PrecisionPlan::new(Origin::default(), 10, Choice::INT8, layers).unwrap().to_json();
    assert!(json.contains(from), "{from} is not in {json}");
    PrecisionPlan::from_json(&json.replacen(from, text, 1))
}

#[test]
fn malformed_plans_are_errors_that_say_what_is_wrong() {
    let syntax = |result: Result<PrecisionPlan, AdaptiveError>, words: &[&str]| match result {
        Err(AdaptiveError::PlanSyntax { message }) => {
            for word in words {
                assert!(message.contains(word), "{message:?} does not say {word:?}");
            }
        }
        other => panic!("{other:?}"),
    };
    syntax(PrecisionPlan::from_json(""), &["line 1"]);
    syntax(PrecisionPlan::from_json("[]"), &["\"format\" must be"]);
    syntax(with("sage-attn precision plan", "another plan"), &["\"format\" must be"]);
    syntax(with("\"version\": 1", "\"version\": \"1\""), &["\"version\" must be a whole number"]);
    syntax(with("\"int4\"", "\"int2\""), &["precision \"int2\" is not known; use int4, int8 or exact", "line"]);
    syntax(with("\"thread\"", "\"row\""), &["granularity \"row\" is not known"]);
    syntax(with("\"q,k\"", "\"q;k\""), &["smoothing \"q;k\" is not known"]);
    syntax(with("\"from_timestep\": 5", "\"from\": 5"), &["unknown field `from`"]);
    syntax(with("\"from_timestep\": 5", "\"from_timestep\": -5"), &["-5"]);
    syntax(with("\"timesteps\": 10", "\"steps\": 10"), &["unknown field `steps`"]);
    assert_eq!(with("\"version\": 1", "\"version\": 2"), Err(AdaptiveError::PlanVersion { version: 2, supported: 1 }));
    assert_eq!(with("\"layer\": 3", "\"layer\": 1"), Err(AdaptiveError::PlanLayerOrder { layer: 1, before: 1 }));
    assert_eq!(with("\"from_timestep\": 0", "\"from_timestep\": 2"), Err(AdaptiveError::PlanLayerStart { layer: 1 }));
    assert_eq!(
        with("\"from_timestep\": 5", "\"from_timestep\": 0"),
        Err(AdaptiveError::PlanTimestepOrder { layer: 1, timestep: 0, before: 0 })
    );
    assert_eq!(
        with("\"timesteps\": 10", "\"timesteps\": 5"),
        Err(AdaptiveError::PlanTimestepBeyond { layer: 1, timestep: 5, timesteps: 5 })
    );
}
