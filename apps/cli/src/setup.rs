use clap::Args;
use ringfence::postgres;
use serde::Serialize;

use crate::cli::Global;
use crate::exit_codes;
use crate::failure::Failure;
use crate::print::{self, visible};

/// Make what locks need in a PostgreSQL database
///
/// Makes the schema of a postgres: URL, or brings it to this program's version, as the role that the URL names, which owns it
/// from then on. A role that is only to lock is let in with --grant-to. Calling it again changes nothing. Where the role that
/// locks may create schemas none of this is needed: its first connection makes it.
#[derive(Debug, Args)]
pub(crate) struct SetupArgs {
    /// The database, instead of --url and RINGFENCE_URL; ?schema= names another schema than ringfence
    #[arg(value_name = "URL", id = "of")]
    of: Option<String>,
    /// Let this role use the schema, and do nothing else there
    #[arg(long, value_name = "ROLE")]
    grant_to: Option<String>,
    /// Print all of it as a script for psql, and connect to nothing
    #[arg(long)]
    print: bool,
}

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
