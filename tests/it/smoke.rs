//! The main job in one test.

use crate::support::{Proxy, RULES, Redis};

#[test]
fn a_write_deletes_its_dependents_before_it_is_answered() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis, RULES);
    let (mut client, mut direct) = (proxy.client(), redis.client());
    client.cmd("SET app:1:home_page_data_en cached");
    direct.cmd("SET app:1:blog_posts_1 written-directly");
    client.cmd("SET app:1:tools_1 other");
    assert_eq!(client.cmd("SET app:1:model:Post:7 1"), "+OK\r\n");
    assert_eq!(direct.cmd("EXISTS app:1:home_page_data_en app:1:blog_posts_1"), ":0\r\n");
    assert_eq!(direct.cmd("EXISTS app:1:tools_1"), ":1\r\n");
}
