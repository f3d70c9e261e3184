//! A precision plan is read as it was written, or refused.

use sage_attn::adaptive::PrecisionPlan;

/// The target.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let plan = match PrecisionPlan::from_json(&text) {
        Ok(plan) => plan,
        Err(error) => return assert!(error.to_string().len() > 10, "{error}"),
    };
    let share = plan.int4_share();
    assert!((0.0..=1.0).contains(&share), "{share}");
    let layers: Vec<usize> = plan.layers().map(|(layer, _)| layer).collect();
    assert!(layers.is_sorted());
    for layer in layers.into_iter().chain([0, usize::MAX]).take(64) {
        for timestep in [0, 1, plan.timesteps() / 2, plan.timesteps(), usize::MAX] {
            let _ = plan.at(layer, timestep).to_string();
        }
    }
    let again = PrecisionPlan::from_json(&plan.to_json()).expect("what is written can be read");
    assert_eq!(again, plan);
}
