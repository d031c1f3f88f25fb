//! What the page says in SQL is done as it stands there, and answered with what it says.

use sqlx::Row;

const PAGE: &str = include_str!("../../../../docs/guides/sql-fence.md");

/// The statements under a heading, each with what is to come of it.
fn statements(heading: &str) -> Vec<(&'static str, Option<&'static str>)> {
    let (_, section) = PAGE.split_once(&format!("### {heading}\n")).expect("the page has such a section");
    let (_, block) = section.split_once("```sql\n").expect("a section has statements");
    let (block, _) = block.split_once("```").expect("they end");
    let mut statements = Vec::new();
    let mut rest = block.trim();
    while let Some((statement, after)) = rest.split_once(';') {
        let (comment, next) = after.split_once('\n').unwrap_or((after, ""));
        statements.push((statement, comment.trim().strip_prefix("-- ")));
        rest = next.trim();
    }
    statements
}

/// How SQLite admits a token, with the three values to be bound.
pub(crate) fn sqlite_admits() -> String {
    let statements = statements("SQLite");
    let (admit, _) = statements.iter().find(|(_, comment)| *comment == Some("rows: 1")).expect("it admits");
    admit.replace("('parcels/42', 1024, '7b')", "(?, ?, ?)")
}

macro_rules! check {
    ($module:ident, $heading:literal) => {
        #[tokio::test]
        async fn $module() {
            let Some(stage) = crate::$module::Stage::set().await else { return };
            let mut connection = stage.pool.acquire().await.unwrap();
            sqlx::query("INSERT INTO parcels (id, state, version) VALUES (42, 'new', 1)")
                .execute(&mut *connection)
                .await
                .unwrap();
            let mut checked = 0;
            for (statement, comment) in
                [$heading, "A column, on all of them"].into_iter().flat_map(statements)
            {
                let query = || sqlx::raw_sql(statement);
                match comment.and_then(|comment| comment.split_once(": ")) {
                    Some(("rows", rows)) => {
                        let done = query().execute(&mut *connection).await.unwrap();
                        assert_eq!(done.rows_affected().to_string(), rows, "{statement}");
                        checked += 1;
                    }
                    Some(("answer", answer)) => {
                        let row = query().fetch_one(&mut *connection).await.unwrap();
                        assert_eq!(row.get::<i32, _>(0).to_string(), answer, "{statement}");
                        checked += 1;
                    }
                    _ => drop(
                        query()
                            .execute(&mut *connection)
                            .await
                            .unwrap_or_else(|error| panic!("{statement}: {error}")),
                    ),
                }
            }
            assert_eq!(checked, 4, "answers on the page");
        }
    };
}

check!(postgres, "PostgreSQL");
check!(mariadb, "MySQL and MariaDB");
check!(sqlite, "SQLite");
