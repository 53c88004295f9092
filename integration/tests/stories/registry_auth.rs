//! A registry that wants to know who comes: the daemon asks its client.

use integration::{Host, IMAGE, Registry};

use crate::push::digest;

#[test]
fn the_client_s_credentials_reach_the_registry_through_the_daemon() {
    let host = Host::new("auth");
    let registry = Registry::with_password("me", "s3:cret");
    host.image();
    let remote = format!("{}/mine/a:1", registry.host());
    for local in [None, Some("--local")] {
        let push = |user: Option<&str>| {
            let push = ["images", "push", "--plain-http"];
            let user = user.map(|user| format!("--user={user}"));
            let push = host.ctr_program().args(push).args(local).args(user);
            push.args([remote.as_str(), IMAGE]).run()
        };
        for user in [None, Some("me:wrong")] {
            let told = push(user).err();
            assert!(told.contains("unauthenticated"), "{user:?}: {told}");
            assert!(!told.contains("wrong"), "{told}");
        }
        drop(push(Some("me:s3:cret")).ok());
        let pull = ["images", "pull", "--plain-http", "--user=me:s3:cret"];
        let pull = host.ctr_program().args(pull).args(local);
        drop(pull.args([&remote]).run().ok());
        assert_eq!(digest(&host, &remote), digest(&host, IMAGE));
        drop(host.ctr(["images", "rm", &remote]).ok());
    }
    assert!(!host.log().contains("s3:cret"));
    host.finish();
}
