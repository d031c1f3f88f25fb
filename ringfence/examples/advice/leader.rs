//! One leads for as long as it lives, the others stand by and know who it is.

use ringfence::Locks;

#[tokio::main(flavor = "current_thread")]
pub async fn main() -> ringfence::Result<()> {
    let locks = Locks::connect("memory:").await?;
    // Waits in line until it leads.
    let leadership = locks.leader("scheduler").campaign("10.0.0.7:8080").await?;
    tokio::select! {
        // What the schedule is written to should refuse a term that is lower than one it has seen.
        () = schedule(leadership.term()) => leadership.resign().await,
        () = leadership.lost() => leadership.ensure_held(),
    }
}

async fn schedule(term: ringfence::FencingToken) {
    println!("scheduling in term {term}");
    tokio::task::yield_now().await;
}
