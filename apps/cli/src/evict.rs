use clap::Args;
use ringfence::{Eviction, LockName, Nonce, PresentedToken, Result};
use serde::Serialize;

use crate::cli::Global;
use crate::exit_codes;
use crate::failure::Failure;
use crate::lock_view::HolderView;
use crate::print::{self, duration, visible};

/// Take a lock away from its holders
///
/// The evicted holder learns that it lost, its token is stale from then on, and the next in line gets the lock.
#[derive(Debug, Args)]
pub(crate) struct EvictArgs {
    /// Do it; without this, only say whom it would evict and exit with 64
    #[arg(long)]
    yes: bool,
    /// Only the holder with this token or nonce
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true)]
    holder: Option<String>,
    /// Which lock
    name: String,
}

#[derive(Serialize)]
struct Evicted<'a> {
    name: &'a LockName,
    evicted: Vec<HolderView<'a>>,
}

/// Evicts the holders of a lock, or says whom it would evict.
pub(crate) async fn run(args: EvictArgs, global: &Global) -> Result<u8, Failure> {
    let name = LockName::new(&args.name)?;
    let only = args.holder.as_deref().map(nonce).transpose()?;
    let locks = global.connect().await?;
    let mut holders = locks.inspect(&name).await?.holders;
    holders.retain(|holder| only.is_none_or(|nonce| nonce == holder.token.nonce()));
    if !args.yes && !holders.is_empty() {
        let whom: Vec<_> =
            holders.iter().map(|holder| format!("{}, token {}", holder.holder, holder.token)).collect();
        let message = format!("would evict from {name}: {}; say --yes to do it", whom.join("; "));
        return Err(Failure::new(exit_codes::USAGE, message));
    }
    let mut evicted = Vec::new();
    for holder in &holders {
        if locks.evict(&name, holder.token.nonce()).await? == Eviction::Evicted {
            evicted.push(holder);
        }
    }
    if evicted.is_empty() {
        let whom = args.holder.map_or_else(|| "nobody".to_owned(), |holder| format!("no holder {holder}"));
        return Err(Failure::new(exit_codes::NOTHING_THERE, format!("there is {whom} to evict from {name}")));
    }
    if global.json {
        print::json(&Evicted { name: &name, evicted: evicted.into_iter().map(HolderView::from).collect() })?;
    } else {
        for holder in evicted {
            let held_for = holder.age.map_or_else(String::new, |age| format!(" for {}", duration(age)));
            print::line(&format!(
                "evicted {}, who held {}{held_for}",
                visible(&holder.holder.to_string()),
                visible(name.as_str())
            ))?;
        }
    }
    Ok(exit_codes::OK)
}

/// A holder is named by its whole token, as `show` prints it, or by the part after the dot.
fn nonce(text: &str) -> Result<Nonce> {
    if text.contains('.') { Ok(text.parse::<PresentedToken>()?.token().nonce()) } else { text.parse() }
}
