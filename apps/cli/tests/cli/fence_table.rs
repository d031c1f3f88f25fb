//! `fence-table`: a table of a database that refuses whoever has no token.

use ringfence_servers::Postgres;

use crate::support::Store;

#[tokio::test]
async fn a_table_is_fenced_from_the_command_line() {
    let Some(server) = Postgres::start().await else { return };
    server.psql("CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (42)").await;
    let (store, url) = (Store::new(), server.url());
    let said = store.ringfence(["fence-table", &url, "public.orders", "--key", "id"]).with_code(0).stdout;
    assert_eq!(said, "public.orders is fenced by id: admit tokens to public.orders/<id>\n");
    let again = ["fence-table", "--json", "--url", &url, "--key", "id", "public.orders"];
    let json = store.ringfence(again).with_code(0).json();
    assert_eq!(
        json,
        serde_json::json!({"table": "public.orders", "key": "id", "resources": "public.orders/"})
    );

    let refused = server.ask("DELETE FROM orders").await.unwrap_err();
    assert!(refused.contains("DELETE of public.orders/42 without a token"), "{refused}");
    server
        .psql("BEGIN; SELECT ringfence.admit('public.orders/42', 1024, '7b'); DELETE FROM orders; COMMIT")
        .await;

    let fence = |table: &str, key: &str| store.ringfence(["fence-table", &url, table, "--key", key]);
    fence("public.nothing", "id").with_code(64).saying("there is no table public.nothing");
    fence("public.orders", "number").with_code(64).saying("table public.orders has no column number");
    store.ringfence(["fence-table", &url, "public.orders"]).with_code(64).saying("--key");
    store.ringfence(["fence-table", &url, "--key", "id"]).with_code(64);
    store.ringfence(["fence-table", "public.orders", "--key", "id"]).with_code(64).saying("postgres://");
    server.psql("CREATE ROLE clerk LOGIN; GRANT USAGE ON SCHEMA ringfence TO clerk").await;
    server.psql("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA ringfence TO clerk").await;
    let denied = ["fence-table", &server.url_of("clerk"), "public.orders", "--key", "id"];
    store.ringfence(denied).with_code(69).saying("GRANT TRIGGER, UPDATE ON public.orders TO clerk");
}
