//! Shims that answer, but cannot tell of their task.

use sys::process::Spawn;

use super::*;

/// One that has no answer to what the state is; it can end its task all the same.
struct Mute {
    shim: u32,
    version: &'static str,
    code: ttrpc::Code,
    text: &'static str,
}

/// One whose virtual machine does not answer.
fn ailing() -> Services {
    task_v3_ttrpc::create_task(Arc::new(Mute {
        shim: std::process::id(),
        version: "",
        code: ttrpc::Code::UNAVAILABLE,
        text: "agent does not answer",
    }))
}

/// One that has no task, or none yet.
fn without(version: &'static str) -> Services {
    task_v3_ttrpc::create_task(Arc::new(Mute {
        // It may be killed.
        shim: 0,
        version,
        code: ttrpc::Code::NOT_FOUND,
        text: "container not created",
    }))
}

#[async_trait]
impl task_v3_ttrpc::Task for Mute {
    async fn connect(
        &self,
        _: &TtrpcContext,
        _: wire::ConnectRequest,
    ) -> ttrpc::Result<wire::ConnectResponse> {
        Ok(wire::ConnectResponse {
            shim_pid: self.shim,
            version: self.version.to_owned(),
            ..Default::default()
        })
    }

    async fn state(
        &self,
        _: &TtrpcContext,
        _: wire::StateRequest,
    ) -> ttrpc::Result<wire::StateResponse> {
        let status = ttrpc::get_status(self.code, self.text);
        Err(ttrpc::Error::RpcStatus(status))
    }

    async fn kill(
        &self,
        _: &TtrpcContext,
        _: wire::KillRequest,
    ) -> ttrpc::Result<protos::well_known::Empty> {
        Ok(protos::well_known::Empty::default())
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_can_be_ended_although_its_shim_cannot_tell_of_it() {
    let home = Home::new();
    let mut servers = Vec::new();
    for name in ["known", "unknown"] {
        home.leave(name, 3);
        servers.push(serve(&home.socket(name), vec![ailing()]).await);
    }
    let init = Spawn::new("sleep").arg("600").spawn().unwrap();
    let pid = init.pid().to_string();
    std::fs::write(home.bundle("known").join("init.pid"), pid).unwrap();
    let tasks = home.recover().await;
    let known = tasks.get(&ns(), &id("known")).await.unwrap();
    known.kill(None, 9, false).await.unwrap();
    // There may be a create under way.
    let begun = tokio::time::Instant::now();
    let unknown = tasks.get(&ns(), &id("unknown")).await.unwrap();
    let told = unknown.kill(None, 9, false).await.unwrap_err();
    assert!(told.to_string().contains("agent does not answer"), "{told}");
    let ends = async { while unknown.kill(None, 9, false).await.is_err() {} };
    let ended = tokio::time::timeout(Duration::from_secs(3600), ends).await;
    ended.expect("no create takes so long");
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(120), "{took:?}");
    assert_eq!(home.calls(), "");
    init.kill(9).unwrap();
    init.wait().unwrap();
}

#[tokio::test]
async fn a_shim_that_may_be_at_making_its_task_is_asked_again() {
    let home = Home::new();
    home.answer(0);
    let mut servers = Vec::new();
    for (name, version) in [("ours", "1.0"), ("other", ""), ("old", ""), ("ending", "")] {
        home.leave(name, 3);
        std::fs::write(home.bundle(name).join("config.json"), "").unwrap();
        servers.push(serve(&home.socket(name), vec![without(version)]).await);
    }
    home.age("old");
    std::fs::write(home.bundle("ending").join("ending"), "").unwrap();
    let tasks = home.recover().await;
    let are_left = async |left: usize| {
        while tasks.list(None).await.unwrap().len() != left {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    within(are_left(1)).await;
    let task = tasks.get(&ns(), &id("other")).await.unwrap();
    let told = task.kill(None, 9, false).await.unwrap_err();
    assert!(told.to_string().contains("may be at making it"), "{told}");
    assert!(!home.calls().contains("-id other"), "{}", home.calls());
    // What no create takes.
    home.age("other");
    within(are_left(0)).await;
    assert!(home.events().is_empty());
}
