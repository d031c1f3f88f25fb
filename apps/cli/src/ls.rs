use clap::Args;
use ringfence::{ListQuery, LockState};

use crate::cli::Global;
use crate::exit_codes;
use crate::failure::Failure;
use crate::lock_view::LockView;
use crate::print::{self, duration, until_lapse};

/// List the locks that are held or waited for
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Only names that begin with this
    #[arg(default_value = "", hide_default_value = true)]
    prefix: String,
}

/// Lists every lock that is held or waited for.
pub(crate) async fn run(args: LsArgs, global: &Global) -> Result<u8, Failure> {
    let locks = global.connect().await?;
    let mut states = Vec::new();
    let mut query = ListQuery::new(args.prefix.as_str());
    loop {
        let page = locks.list(query).await?;
        states.extend(page.items);
        match page.next {
            Some(last) => query = ListQuery::new(args.prefix.as_str()).after(last),
            None => break,
        }
    }
    if global.json {
        print::json(&states.iter().map(LockView::from).collect::<Vec<_>>())?;
    } else if !states.is_empty() {
        let header = ["NAME", "MODE", "HOLDER", "AGE", "LAPSES IN", "WAITING", "TOKEN"].map(str::to_owned);
        let rows: Vec<_> = std::iter::once(header).chain(states.iter().flat_map(rows)).collect();
        print::line(&print::table(&rows))?;
    }
    Ok(exit_codes::OK)
}

/// One row for each holder, or one for a lock that is only waited for.
fn rows(state: &LockState) -> Vec<[String; 7]> {
    let name = state.name.to_string();
    let waiting = state.waiters.len().to_string();
    if state.holders.is_empty() {
        let nobody = || "-".to_owned();
        return vec![[name, nobody(), nobody(), nobody(), nobody(), waiting, nobody()]];
    }
    let (unknown, never) = (|| "unknown".to_owned(), || "never".to_owned());
    let row = |holder: &ringfence::HolderState| {
        [
            name.clone(),
            holder.mode.to_string(),
            holder.holder.to_string(),
            holder.age.map_or_else(unknown, duration),
            holder.remaining.map_or_else(unknown, |remaining| until_lapse(remaining).unwrap_or_else(never)),
            waiting.clone(),
            holder.token.to_string(),
        ]
    };
    state.holders.iter().map(row).collect()
}
