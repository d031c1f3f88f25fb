//! What the page says in SQL is done as it stands there, and answered with what it says.

use crate::stage::Stage;

const PAGE: &str = include_str!("../../../../docs/postgres.md");

#[tokio::test]
async fn the_page_is_right() {
    let Some(stage) = Stage::set().await else { return };
    stage
        .server
        .psql(
            "INSERT INTO orders VALUES (42, 'new');
             CREATE TABLE parcels AS SELECT id, state FROM orders",
        )
        .await;
    let mut psql = stage.server.session();
    let mut checked = 0;
    let mut is_sql = false;
    // What stands before that is about roles that this server does not have.
    for line in PAGE.lines().skip_while(|line| *line != "## In your own transaction") {
        if line.starts_with("```") {
            is_sql = line == "```sql";
            continue;
        }
        if !is_sql {
            continue;
        }
        let (statement, comment) = line.split_once("--").unwrap_or((line, ""));
        let said = psql.ask(statement.trim().trim_end_matches(';')).await;
        let comment = comment.trim();
        let is_answer = ["ERROR:", "public.", "t"]
            .iter()
            .any(|word| comment == *word || comment.starts_with(word) && word.len() > 1);
        if is_answer {
            assert!(said.lines().any(|line| line == comment), "{line}: {said}");
            checked += 1;
        } else {
            assert!(!said.contains("ERROR"), "{line}: {said}");
        }
    }
    assert_eq!(checked, 6, "answers on the page");
}
