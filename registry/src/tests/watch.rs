//! What people see who look for a fault.

use std::sync::{Arc, Mutex};

use super::{image, opts, read};
use crate::testsuite::{Reply, Server};
use crate::{Credentials, Proxies, RegistryOpts, Repository, Watch};

#[tokio::test]
async fn heads_and_times_are_told_and_secrets_are_not() {
    let (content, _, layer, data) = image();
    let away = content.clone();
    let away = Server::start(move |request| away.reply(request)).await;
    let to = away.host().to_owned();
    let server = Server::start(move |request| {
        if request.header("authorization").is_empty() {
            return Reply::status(401).with("www-authenticate", "Basic realm=x");
        }
        if request.path.contains("/blobs/") {
            let to = format!("http://{to}{}?signature=hidden", request.path);
            return Reply::status(307).with("location", to);
        }
        content.reply(request).with("set-cookie", "hidden")
    })
    .await;
    for (heads, times) in [(true, false), (false, true), (true, true)] {
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let tell = Arc::clone(&told);
        let opts = RegistryOpts {
            credentials: Some(Credentials {
                user: "me".into(),
                secret: "hidden".into(),
            }),
            proxies: Some(Proxies {
                http: "http://me:hidden@127.0.0.1:1".into(),
                ..Proxies::default()
            }),
            watch: Some(Watch::new(heads, times, move |text| {
                tell.lock().unwrap().push(text);
            })),
            ..opts()
        };
        let mut opts = opts;
        opts.headers.insert("x-mine", "hidden".parse().unwrap());
        assert!(!format!("{:?}", opts.proxies).contains("hidden"));
        let reference = format!("{}/r:latest", server.host()).parse().unwrap();
        let repository = Repository::new(&reference, opts).unwrap();
        repository.resolve().await.unwrap();
        assert_eq!(read(&repository, &layer, 0).await.unwrap(), data);
        let told = told.lock().unwrap().join("\n");
        for secret in ["hidden", "bWU6"] {
            assert!(!told.contains(secret), "{told}");
        }
        let head = format!("> HEAD http://{}/v2/r/manifests/latest\n", server.host());
        assert_eq!(told.contains(&head), heads, "{told}");
        for part in [
            "> authorization: (secret)",
            "< 307",
            "< docker-content-digest: sha256:",
        ] {
            assert_eq!(told.contains(part), heads, "{told}");
        }
        let time = format!(
            "GET http://{}/v2/r/blobs/{}: 200",
            away.host(),
            layer.digest
        );
        assert_eq!(told.contains(&time), times, "{told}");
    }
}
