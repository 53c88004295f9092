//! Options and requests as the runtime gets them, seen in the arguments of its calls.

use integration::shim::{Bundle, Contract, Driver, Io};
use protos::Message as _;
use protos::runc::Options;
use protos::shim::task::KillRequest;
use protos::well_known::{Any, Empty};

fn any(options: &Options) -> Any {
    Any {
        type_url: "containerd.runc.v1.Options".to_owned(),
        value: options.write_to_bytes().expect("encode"),
        ..Default::default()
    }
}

#[test]
fn options_reach_the_runtime_as_flags() {
    let driver = Driver::new("options");
    let task = driver.task("c", &Bundle::new("exit 0"));
    let script = driver.script();
    // Not all of them work everywhere: the arguments are what counts.
    script.on("create", "fail");
    let plain = Options {
        binary_name: script.path().display().to_string(),
        ..Options::default()
    };
    let root = driver.path("elsewhere").display().to_string();
    let all = Options {
        no_pivot_root: true,
        no_new_keyring: true,
        systemd_cgroup: true,
        root: root.clone(),
        ..plain.clone()
    };
    let task = task.runtime(any(&all));
    task.create(&Io::null()).expect_err("a create that fails");
    let create = script.calls("create").pop().expect("a call");
    for part in [
        format!("--root {root}/{} ", driver.namespace()),
        " --systemd-cgroup create ".to_owned(),
        " --no-pivot ".to_owned(),
        " --no-new-keyring ".to_owned(),
        format!(" --bundle {} ", task.bundle.display()),
    ] {
        assert!(create.contains(&part), "{part}: {create}");
    }
    let task = task.runtime(any(&plain));
    task.create(&Io::null()).expect_err("a create that fails");
    let create = script.calls("create").pop().expect("a call");
    let own = driver.path("state/runc").join(driver.namespace());
    assert!(
        create.contains(&format!("--root {} ", own.display())),
        "{create}"
    );
    for flag in ["--systemd-cgroup", "--no-pivot", "--no-new-keyring"] {
        assert!(!create.contains(flag), "{flag}: {create}");
    }
    driver.finish();
}

#[test]
fn a_signal_for_all_ends_every_process_of_the_container() {
    let driver = Driver::new("kill-all");
    let script = driver.script();
    let task = driver.task("c", &Bundle::new("sleep 1000 & sleep 1001 & wait"));
    let task = task.runtime(driver.options_with(&script.path().to_string_lossy()));
    task.create(&Io::null()).expect("create");
    task.start("").expect("start");
    task.exec("e", "sleep 1000", &Io::null()).expect("exec");
    task.start("e").expect("start");
    let request = KillRequest {
        id: "c".to_owned(),
        signal: 9,
        all: true,
        ..Default::default()
    };
    task.call::<_, Empty>("Kill", &request).expect("kill");
    let ends = (task.wait("e").expect("wait"), task.wait("").expect("wait"));
    assert_eq!(ends, (137, 137));
    let kill = script.calls("kill").pop().expect("a call");
    assert!(kill.ends_with("kill --all c 9"), "{kill}");
    task.delete("").expect("delete");
    driver.finish();
}

#[test]
fn the_shim_joins_the_control_group_that_it_is_told() {
    let driver = Driver::new("shim-cgroup");
    driver.write("c", &Bundle::new("exit 0"));
    let group = format!("/{}/shim", driver.namespace());
    let options = any(&Options {
        shim_cgroup: group.clone(),
        ..Options::default()
    });
    let shim = driver.start_with("c", Contract::Bootstrap, &options);
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", shim.pid)).expect("read");
    assert!(
        groups.lines().any(|line| line.ends_with(&group)),
        "{groups}"
    );
    let score = |pid: u32| sys::limits::oom_score(pid).expect("score");
    assert_eq!(score(shim.pid), (score(std::process::id()) + 1).min(1000));
    let found = sys::cgroup::Cgroup::of(shim.pid).expect("its group");
    driver
        .connect(&shim, "c")
        .shutdown(false)
        .expect("shutdown");
    shim.ends();
    for line in groups.lines().filter(|line| line.ends_with(&group)) {
        let names = line.split(':').nth(1).unwrap_or_default();
        // Controllers that are mounted together share the directory.
        if let Some(dir) = names.split(',').find_map(|name| found.dir(name)) {
            std::fs::remove_dir(dir).expect("remove the group");
            let parent = dir.parent().expect("a parent");
            std::fs::remove_dir(parent).expect("remove the group above");
        }
    }
    driver.finish();
}
