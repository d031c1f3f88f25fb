use ringfence::postgres;
use serde::Serialize;

use crate::cli::{Global, SetupArgs};
use crate::exit_codes;
use crate::failure::Failure;
use crate::print::{self, visible};

#[derive(Serialize)]
struct Done<'a> {
    schema: &'a str,
    granted_to: Option<&'a str>,
}

#[derive(Serialize)]
struct Script {
    script: String,
}

/// Makes what locks need in a database, or prints how to.
pub(crate) async fn run(args: SetupArgs, global: Global) -> Result<u8, Failure> {
    let role = args.grant_to.as_deref();
    let global = Global { url: args.of.or(global.url), ..global };
    let url = global.url()?;
    if args.print {
        let script = postgres::setup_script(&url, role)?;
        if global.json {
            print::json(&Script { script })?;
        } else {
            print::line(script.trim_end())?;
        }
        return Ok(exit_codes::OK);
    }
    let schema = postgres::setup(&url, role).await?;
    if global.json {
        print::json(&Done { schema: &schema, granted_to: role })?;
    } else {
        let granted = role.map(|role| format!(", and the role {} may use it", visible(role)));
        print::line(&format!("the schema {schema} is ready{}", granted.unwrap_or_default()))?;
    }
    Ok(exit_codes::OK)
}
