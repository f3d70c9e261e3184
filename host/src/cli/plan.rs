//! `plan`: precision plans on the command line.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use sage_attn::adaptive::{AdaptiveError, PrecisionPlan};

use super::{Failure, print};

/// Options of `plan`.
#[derive(Args)]
pub struct PlanOptions {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Show what a plan decides.
    Show {
        /// Plan, as `calibrate` writes it
        file: PathBuf,
        /// Print the plan as JSON, checked and in its normal form
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command.
pub fn plan(options: &PlanOptions) -> Result<(), Failure> {
    let Action::Show { file, json } = &options.action;
    let plan = load(file)?;
    if *json {
        return print(plan.to_json().trim_end());
    }
    print(describe(&plan))?;
    print(table(&plan))
}

/// Reads the plan at `path`.
pub fn load(path: &Path) -> Result<PrecisionPlan, Failure> {
    PrecisionPlan::load(path).map_err(|error| match error {
        AdaptiveError::File { .. } => Failure::Input(error.to_string()),
        error => Failure::Input(format!("{}: {error}", path.display())),
    })
}

/// Where the plan comes from and what it amounts to, in lines.
pub fn describe(plan: &PrecisionPlan) -> String {
    let origin = plan.origin();
    let mut lines = Vec::new();
    if !origin.model.is_empty() {
        lines.push(format!("model: {}", origin.model));
    }
    match origin.rule {
        Some(rule) => lines.push(format!("rule: {rule}, from {} samples", origin.samples)),
        None => lines.push("rule: none, made by hand".into()),
    }
    if !origin.device.is_empty() {
        lines.push(format!("device: {}", origin.device));
    }
    if let Some(note) = &origin.note {
        lines.push(format!("note: {note}"));
    }
    lines.push(format!("INT4: {:.0} % of layers and timesteps", plan.int4_share() * 100.0));
    lines.join("\n")
}

/// The decisions, one per row.
pub fn table(plan: &PrecisionPlan) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        "layer",
        "timesteps",
        "precision",
        "granularity",
        "smoothing",
        "score",
    ]);
    for (layer, decisions) in plan.layers() {
        let ends = decisions.iter().skip(1).map(|next| next.from_timestep).chain([plan.timesteps()]);
        for (decision, end) in decisions.iter().zip(ends) {
            table.add_row([
                layer.to_string(),
                format!("{} to {}", decision.from_timestep, end - 1),
                decision.choice.precision_name().to_owned(),
                decision.choice.granularity().name().to_owned(),
                decision.choice.smoothing().name(),
                decision.score.map_or_else(|| "-".into(), |score| format!("{score:.4}")),
            ]);
        }
    }
    let default = plan.default_choice();
    table.add_row([
        "others".to_owned(),
        "all".to_owned(),
        default.precision_name().to_owned(),
        default.granularity().name().to_owned(),
        default.smoothing().name(),
        "-".to_owned(),
    ]);
    table
}
