use clap::Args;
use ringfence::{Finding, Severity};
use serde::Serialize;

use crate::cli::Global;
use crate::exit_codes;
use crate::failure::Failure;
use crate::print::{self, visible};

/// Look for what would break a backend's promises here
///
/// Prints what it looked at and what it found, the worst first, each with what to do about it: a server that evicts keys
/// or forgets them in a restart, a clock that was set, rights that are missing, a disk that is full. It changes nothing.
/// Exits with 78 if there is a problem; warnings leave it at 0.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// The backend of this URL, instead of --url and RINGFENCE_URL
    #[arg(value_name = "URL", id = "of")]
    of: Option<String>,
}

#[derive(Serialize)]
struct Examined<'a> {
    url: &'a str,
    findings: &'a [Finding],
}

/// Looks for what would break a backend's promises here. A problem is an exit code.
pub(crate) async fn run(args: DoctorArgs, global: Global) -> Result<u8, Failure> {
    let global = Global { url: args.of.or(global.url), ..global };
    let locks = global.connect().await?;
    let findings = locks.examine().await?;
    let url = locks.backend_url();
    if global.json {
        print::json(&Examined { url: &url, findings: &findings })?;
    } else {
        print::line(&describe(&url, &findings))?;
    }
    let has_problem = findings.iter().any(|finding| finding.severity == Severity::Problem);
    Ok(if has_problem { exit_codes::PROBLEM } else { exit_codes::OK })
}

fn describe(url: &str, findings: &[Finding]) -> String {
    let mut lines = vec![visible(url).into_owned()];
    for Finding { severity, about, what, advice, .. } in findings {
        lines.push(format!("  {severity:8} {about}: {}", visible(what)));
        lines.extend(advice.iter().map(|advice| format!("           {}", visible(advice))));
    }
    lines.join("\n")
}
