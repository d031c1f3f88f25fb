use ringfence::{BackendUrl, Claim, Guarantees, guarantees_of, schemes};
use serde::Serialize;

use crate::cli::{Global, GuaranteesArgs};
use crate::exit_codes;
use crate::failure::Failure;
use crate::print;

#[derive(Serialize)]
struct Promises<'a> {
    scheme: &'a str,
    guarantees: &'a Guarantees,
    claims: Vec<Claim>,
}

/// Prints what backends promise, without connecting to any.
pub(crate) fn run(args: &GuaranteesArgs, global: &Global) -> Result<u8, Failure> {
    let url = args.of.as_deref().or(global.url.as_deref()).map(BackendUrl::parse).transpose()?;
    let schemes = match &url {
        Some(url) => vec![url.scheme()],
        None => schemes(),
    };
    let guarantees = schemes
        .iter()
        .map(|scheme| Ok((*scheme, guarantees_of(scheme)?)))
        .collect::<ringfence::Result<Vec<_>>>()?;
    let promises: Vec<_> = guarantees
        .iter()
        .map(|(scheme, guarantees)| Promises { scheme, guarantees, claims: guarantees.claims() })
        .collect();
    if global.json {
        print::json(&promises)?;
    } else {
        let text: Vec<_> = promises.iter().map(describe).collect();
        print::line(&text.join("\n\n"))?;
    }
    Ok(exit_codes::OK)
}

fn describe(promises: &Promises<'_>) -> String {
    let claims = promises.claims.iter().map(|claim| [format!("  {}", claim.about), claim.promise.clone()]);
    format!("{}:\n{}", promises.scheme, print::table(&claims.collect::<Vec<_>>()))
}
