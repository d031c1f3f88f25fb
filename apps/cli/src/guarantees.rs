use clap::Args;
use ringfence::{BackendUrl, Claim, Guarantees, guarantees_of, schemes};
use serde::Serialize;

use crate::cli::Global;
use crate::exit_codes;
use crate::failure::Failure;
use crate::print;

/// Print what each backend promises, and under which faults
#[derive(Debug, Args)]
pub(crate) struct GuaranteesArgs {
    /// Only the backend of this URL
    #[arg(value_name = "URL", id = "of")]
    of: Option<String>,
}

#[derive(Serialize)]
struct Promises {
    scheme: String,
    guarantees: Guarantees,
    claims: Vec<Claim>,
}

/// Prints what backends promise, without connecting to any.
pub(crate) fn run(args: &GuaranteesArgs, global: &Global) -> Result<u8, Failure> {
    let urls = match args.of.as_ref().or(global.url.as_ref()) {
        Some(url) => vec![url.clone()],
        None => schemes().iter().map(|scheme| format!("{scheme}:")).collect(),
    };
    let promises = urls
        .iter()
        .map(|url| {
            let guarantees = guarantees_of(url)?;
            let scheme = BackendUrl::parse(url)?.scheme().to_owned();
            Ok(Promises { scheme, claims: guarantees.claims(), guarantees })
        })
        .collect::<ringfence::Result<Vec<_>>>()?;
    if global.json {
        print::json(&promises)?;
    } else {
        let text: Vec<_> = promises.iter().map(describe).collect();
        print::line(&text.join("\n\n"))?;
    }
    Ok(exit_codes::OK)
}

fn describe(promises: &Promises) -> String {
    let claims = promises.claims.iter().map(|claim| [format!("  {}", claim.about), claim.promise.clone()]);
    format!("{}:\n{}", promises.scheme, print::table(&claims.collect::<Vec<_>>()))
}
