//! `plan`: precision plans on the command line.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use sage_attn::adaptive::{AdaptiveError, Measurements, Origin, PrecisionPlan, Rule, Speeds};
use sage_attn::plot::HeatMap;

use super::file::replace;
use super::{Failure, print, terminal};

/// Options of `plan`.
#[derive(Args)]
pub struct PlanOptions {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make a plan from measurements, without running the model again.
    Make(MakeOptions),
    /// Show what a plan decides.
    Show {
        /// Plan, as `calibrate` writes it
        file: PathBuf,
        /// Print the plan as JSON, checked and in its normal form
        #[arg(long)]
        json: bool,
    },
}

/// Options of `plan make`.
#[derive(Args)]
struct MakeOptions {
    /// Measurements, as `calibrate` writes them
    measurements: PathBuf,
    /// Write the plan to this file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    rule: RuleOptions,
    /// Speed of INT4 over INT8 on the device the plan is for; unless it is above 1, the plan has no INT4
    #[arg(long, value_name = "RATIO")]
    speedup: Option<f64>,
    /// Name of the model
    #[arg(long, default_value = "")]
    model: String,
    /// Draw a heat map of the error by layer and timestep
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// How a plan is decided.
#[derive(Args)]
pub struct RuleOptions {
    /// Give INT8 to this percentage of layers and timesteps, those whose INT4 scores lowest
    #[arg(long, value_name = "PERCENT", default_value_t = 30.0, conflicts_with = "budget")]
    percent: f64,
    /// Instead, use as much INT4 as keeps the mean relative L1 of attention within this budget
    #[arg(long, value_name = "RELATIVE_L1")]
    budget: Option<f64>,
    /// Instead, use as much INT4 as lets the model lose at most this many percent: bits per byte for RustLM
    #[arg(long, value_name = "PERCENT", conflicts_with_all = ["percent", "budget"])]
    max_loss: Option<f64>,
    /// Lowest score (cosine times one minus relative L1) at which INT4 may be used
    #[arg(long, value_name = "SCORE")]
    floor: Option<f64>,
}

impl RuleOptions {
    /// The rule, its parameters checked.
    pub fn rule(&self) -> Result<Rule, Failure> {
        let floor = self.floor;
        let rule = match (self.max_loss, self.budget) {
            (Some(percent), _) => Rule::Loss { loss: percent / 100.0, floor },
            (None, Some(rel_l1)) => Rule::Budget { rel_l1, floor },
            (None, None) => Rule::Percentile { percent: self.percent, floor },
        };
        rule.validate().map_err(adaptive)?;
        Ok(rule)
    }
}

/// Runs the command.
pub fn plan(options: &PlanOptions) -> Result<(), Failure> {
    match &options.action {
        Action::Make(options) => make(options),
        Action::Show { file, json } => {
            let plan = load(file)?;
            if *json {
                return print(plan.to_json().trim_end());
            }
            show(&plan)
        }
    }
}

fn make(options: &MakeOptions) -> Result<(), Failure> {
    let rule = options.rule.rule()?;
    let measurements = Measurements::load(&options.measurements).map_err(adaptive)?;
    let speeds = options.speedup.map_or_else(Speeds::unmeasured, |ratio| Speeds::assumed("", ratio));
    let plan = rule.plan(&measurements, &speeds).map_err(adaptive)?;
    let origin = Origin { model: options.model.clone(), ..plan.origin().clone() };
    let plan = plan.with_origin(origin);
    plan.save(&options.out).map_err(adaptive)?;
    if let Some(path) = &options.svg {
        replace(path, HeatMap::of_plan(&measurements, &plan).to_svg().as_bytes())?;
    }
    show(&plan)
}

/// Prints what the plan decides.
pub fn show(plan: &PrecisionPlan) -> Result<(), Failure> {
    print(describe(plan))?;
    terminal::table(&table(plan))
}

/// The failure of a calibration or a plan.
pub fn adaptive(error: AdaptiveError) -> Failure {
    match error {
        // A file that cannot be written is no fault of the input.
        AdaptiveError::File { action: "write", .. } => Failure::Other(error.to_string()),
        error => Failure::Input(error.to_string()),
    }
}

/// Reads the plan at `path`.
pub fn load(path: &Path) -> Result<PrecisionPlan, Failure> {
    PrecisionPlan::load(path).map_err(|error| match error {
        AdaptiveError::File { .. } => Failure::Input(error.to_string()),
        error => Failure::Input(format!("{}: {error}", path.display())),
    })
}

/// Where the plan comes from and what it amounts to, in lines.
fn describe(plan: &PrecisionPlan) -> String {
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
fn table(plan: &PrecisionPlan) -> Table {
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
