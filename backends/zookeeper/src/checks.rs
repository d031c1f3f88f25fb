//! What would break the promises on the servers at hand.

use ringfence_core::{Finding, Result};

use crate::backend::Client;

pub(crate) async fn examine(client: &Client) -> Result<Vec<Finding>> {
    client.sessions.any().await?;
    let (shortest, longest) = client.sessions.range;
    Ok(vec![Finding::fine("sessions", format!("the servers grant sessions of {shortest} to {longest}"))])
}
