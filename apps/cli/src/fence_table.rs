use clap::Args;
use serde::Serialize;

use crate::cli::Global;
use crate::exit_codes;
use crate::failure::Failure;
use crate::print::{self, visible};

/// Fence a table of a PostgreSQL database: no UPDATE or DELETE without a token
///
/// From now on a row is changed by nobody, from psql or any program, who has not admitted a token to it in the same transaction,
/// as in SELECT ringfence.admit('public.orders/42', 1024, '7b') for the token 1024.7b. A token that is below the highest that the
/// row has seen is refused. An INSERT needs a token where its key ever had one, TRUNCATE is refused. Prints what the names of the
/// rows' resources begin with.
///
/// Table and key are written as in SQL: folded to lower case unless they stand in double quotes. The role of the URL has to own the
/// table, or to have TRIGGER and UPDATE on it. To undo it, DROP TRIGGER ringfence_fence and ringfence_truncate.
#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
pub(crate) struct FenceTableArgs {
    /// The database of this URL, instead of --url and RINGFENCE_URL
    #[arg(value_name = "URL", id = "of")]
    of: Option<String>,
    /// Which table, as in public.orders
    #[arg(required = true)]
    table: String,
    /// The column that tells its rows apart
    #[arg(long, value_name = "COLUMN")]
    key: String,
}

#[derive(Serialize)]
struct Fenced<'a> {
    table: &'a str,
    key: &'a str,
    resources: String,
}

/// Puts a fence before a table of a PostgreSQL database.
pub(crate) async fn run(args: FenceTableArgs, global: Global) -> Result<u8, Failure> {
    let FenceTableArgs { of, table, key } = args;
    let global = Global { url: of.or(global.url), ..global };
    let resources = ringfence::postgres::fence_table(&global.url()?, &table, &key).await?;
    let fenced = Fenced { table: &table, key: &key, resources };
    if global.json {
        print::json(&fenced)?;
    } else {
        let [table, key, resources] = [&table, &key, &fenced.resources].map(|text| visible(text));
        print::line(&format!("{table} is fenced by {key}: admit tokens to {resources}<{key}>"))?;
    }
    Ok(exit_codes::OK)
}
