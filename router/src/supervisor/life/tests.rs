//! Lives of real processes.

use rustix::process::Signal;

use super::*;

/// A process that does nothing for a long time.
fn idle(options: &WorkerOptions) -> Life {
    let worker = WorkerId { pool: 0, slot: 0, generation: 0 };
    let (process, _, _) =
        start(&"app-1".into(), 0, options, &mut None, &Tail::default(), worker).unwrap();
    Life::new(worker, Arc::new(options.clone()), process, Unburied::default())
}

fn options() -> WorkerOptions {
    WorkerOptions::new("/bin/sleep")
        .arg("1000")
        .start_timeout(Duration::from_secs(100))
        .drain_timeout(Duration::from_secs(60))
        .stop_timeouts(Duration::from_secs(5), Duration::from_secs(10))
}

impl Life {
    /// Seconds until something is done next.
    fn due_in(&self) -> Option<u64> {
        self.state.next().map(|next| (next - Deadline::now()).as_secs())
    }

    fn told(&mut self, order: Order) {
        let (reports, _received) = mpsc::unbounded_channel();
        self.obey(order, "app-1", &reports);
    }

    fn end(self) {
        process::kill_group(&self.process).unwrap();
        while process::reap(&self.process).unwrap().is_none() {
            std::thread::yield_now();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_later_order_gives_no_more_time() {
    let options = options();
    for later in [Order::Finishing, Order::Draining, Order::End] {
        let mut life = idle(&options);
        life.told(Order::Ready);
        life.told(Order::End);
        life.told(later.clone());
        assert_eq!(life.due_in(), Some(5), "{later:?}");
        life.end();
    }
}

#[tokio::test(start_paused = true)]
async fn no_order_puts_a_kill_off() {
    let options = options();
    let (reports, _received) = mpsc::unbounded_channel();
    for later in [Order::Finishing, Order::Draining, Order::End, Order::PortEnded] {
        let mut life = idle(&options);
        life.told(Order::Ready);
        life.told(Order::PortEnded);
        life.told(later.clone());
        assert_eq!(life.due_in(), Some(1), "{later:?}");
        life.end();
    }
    for later in [Order::Finishing, Order::Draining, Order::End, Order::Term] {
        let mut life = idle(&options);
        life.told(Order::Ready);
        life.told(Order::Term);
        life.on(Event::Due, "app-1", &reports);
        life.told(later.clone());
        assert_eq!(life.due_in(), Some(10), "{later:?}");
        life.end();
    }
}

#[tokio::test(start_paused = true)]
async fn an_earlier_order_hastens_the_end() {
    let options = options();
    let mut life = idle(&options);
    assert_eq!(life.due_in(), Some(100));
    life.told(Order::Draining);
    assert_eq!(life.due_in(), Some(60));
    life.told(Order::End);
    assert_eq!(life.due_in(), Some(5));
    life.told(Order::Kill("of a test".to_owned()));
    assert_eq!(life.due_in(), Some(0));
    life.end();
}

#[tokio::test(start_paused = true)]
async fn a_time_beyond_all_clocks_is_no_panic() {
    let options = options().start_timeout(Duration::MAX).drain_timeout(Duration::MAX);
    let mut life = idle(&options);
    life.told(Order::Draining);
    assert!(life.due_in() > Some(60 * 60 * 24 * 365));
    life.end();
}

#[tokio::test]
async fn a_process_whose_status_somebody_else_took_has_ended_all_the_same() {
    let options = options();
    let life = idle(&options);
    process::kill_group(&life.process).unwrap();
    while process::reap(&life.process).unwrap().is_none() {
        tokio::task::yield_now().await;
    }
    let (_orders, mut received) = mpsc::unbounded_channel();
    let (reports, _reports) = mpsc::unbounded_channel();
    assert_eq!(life.run("app-1", &mut received, &reports).await.0.exit, Exit::Unknown);
}

/// At the descriptor limit the process cannot be waited for; that is no reason to kill it.
#[tokio::test(start_paused = true)]
async fn a_process_that_cannot_be_watched_lives_until_it_ends() {
    let options = options();
    let life = idle(&options);
    let pid = life.process.pid;
    let (orders, mut received) = mpsc::unbounded_channel();
    let (reports, _reports) = mpsc::unbounded_channel();
    let unwatched = Err(io::Error::from_raw_os_error(libc::EMFILE));
    let ended = life.watch(&unwatched, "app-1", &mut received, &reports);
    let ends = async {
        // Many looks later.
        tokio::time::sleep(Duration::from_secs(10)).await;
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
    };
    let ((ended, _), ()) = tokio::join!(ended, ends);
    assert_eq!(ended.exit, Exit::Signal(libc::SIGTERM));
    drop(orders);
}
