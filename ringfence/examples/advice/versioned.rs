//! No lock between reading and writing: a write that comes second is refused, and decides anew.

use ringfence::{Error, Locks};

#[tokio::main(flavor = "current_thread")]
pub async fn main() -> ringfence::Result<()> {
    let locks = Locks::connect("memory:").await?;
    let settings = locks.versioned("settings");
    // Called again, after a pause, with what somebody else wrote meanwhile.
    let version = settings
        .update(async |current| {
            let old =
                current.map_or(String::new(), |record| String::from_utf8_lossy(&record.value).into_owned());
            Ok::<_, Error>(old + "rate=10\n")
        })
        .await?;
    println!("{version:?}");
    Ok(())
}
