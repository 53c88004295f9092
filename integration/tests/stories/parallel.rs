//! Many at once.

use std::sync::atomic::{AtomicUsize, Ordering};

use integration::Host;

#[test]
fn fifty_runs_at_eight_at_a_time_return_the_right_codes() {
    let host = Host::new("parallel");
    host.image();
    let next = AtomicUsize::new(0);
    let right = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= 50 {
                        return;
                    }
                    let script = format!("echo {n}; exit {n}");
                    let out = host.run(&["--rm"], &format!("p{n}"), &["sh", "-c", &script]);
                    let want = (i32::try_from(n).expect("small"), format!("{n}\n"));
                    assert_eq!((out.code, out.stdout), want, "{}", out.stderr);
                    right.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(right.into_inner(), 50);
    host.finish();
}
