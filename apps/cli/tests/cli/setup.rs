//! `setup`: what a database needs before a role that may do little can lock there.

use insta::assert_snapshot;
use ringfence_servers::PostgresOptions;

use crate::support::Store;

#[tokio::test]
async fn a_schema_is_made_and_a_role_let_in_as_often_as_one_likes() {
    let Some(server) = PostgresOptions::new().password("secret").start().await else { return };
    server.psql("CREATE ROLE app LOGIN").await;
    let (store, url) = (Store::new(), server.url());
    let said = store.ringfence(["setup", &url]).with_code(0).stdout;
    assert_eq!(said, "the schema ringfence is ready\n");
    for _ in 0..2 {
        let said = store.ringfence(["setup", &url, "--grant-to", "app"]).with_code(0).stdout;
        assert_eq!(said, "the schema ringfence is ready, and the role app may use it\n");
    }
    let may = "SELECT has_schema_privilege('app', 'ringfence', 'USAGE'),
        has_function_privilege('app', 'ringfence.floor()', 'EXECUTE'),
        has_table_privilege('app', 'ringfence.meta', 'SELECT')";
    assert_eq!(server.psql(may).await, "t|t|f");
    let json = store.ringfence(["--url", &url, "setup", "--json", "--grant-to", "app"]).with_code(0).json();
    assert_eq!((&json["schema"], &json["granted_to"]), (&"ringfence".into(), &"app".into()));
    let refused = store.ringfence(["setup", &url, "--grant-to", "bob"]).with_code(64);
    let refused = refused.saying("role \"bob\" does not exist");
    assert!(!format!("{refused:?}").contains("secret"), "{refused:?}");
}

#[test]
fn the_script_is_printed_without_connecting() {
    let store = Store::new();
    let url = "postgres://nobody@127.0.0.1:1/db?schema=locks";
    let print = ["setup", url, "--print", "--grant-to", "the \"app\""];
    let script = store.ringfence(print).with_code(0).stdout;
    // What is between is tried on a server, where the backend is.
    let lines: Vec<&str> = script.lines().collect();
    let ends = [&lines[..5], &["…"], &lines[lines.len() - 5..]].concat().join("\n");
    assert_snapshot!("setup-script", ends);
    let json = store.ringfence(["setup", url, "--print", "--json", "--grant-to", "the \"app\""]);
    assert_eq!(json.with_code(0).json()["script"].as_str().map(str::trim_end), Some(script.trim_end()));
}

#[test]
fn what_cannot_be_set_up_is_said() {
    let store = Store::new();
    store.ringfence(["setup"]).with_code(64).saying("local: is not PostgreSQL");
    store.ringfence(["setup", "redis://host"]).with_code(64).saying("redis: is not PostgreSQL");
    store.ringfence(["setup", "postgres://host?scheme=a"]).with_code(64).saying("did you mean \"schema\"?");
    store.ringfence(["setup", "postgres://host?schema=A"]).with_code(64).saying("lower-case letters");
    store.ringfence(["setup", "postgres://127.0.0.1:1"]).with_code(69).saying("cannot be reached");
}
