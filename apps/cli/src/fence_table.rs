use serde::Serialize;

use crate::cli::{FenceTableArgs, Global};
use crate::exit_codes;
use crate::failure::Failure;
use crate::print::{self, visible};

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
