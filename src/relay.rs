//! What other threads wake in one turn of a thread costs one wake-up of the thread, not one for each task.
//!
//! A task that is woken from outside costs its waker a system call. So a task that waits for another thread leaves its
//! waker here, and the other thread wakes one task, which wakes all that were meant.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use smallvec::{SmallVec, smallvec};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

/// By which the tasks of one thread wait for others.
#[derive(Clone, Debug)]
pub struct Relay(UnboundedSender<Wakers>);

/// Who was woken. A task is in it once for each time that it has waited.
pub type Woken = UnboundedReceiver<Wakers>;

/// Mostly one.
type Wakers = SmallVec<[Waker; 1]>;

/// Leaves a task's waker with its thread instead of waking it.
struct Relayed {
    relay: Relay,
    waker: Waker,
}

impl Wake for Relayed {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        HELD.with_borrow_mut(|held| match held {
            Some(held) => match held.iter_mut().find(|(relay, _)| relay.0.same_channel(&self.relay.0)) {
                Some((_, wakers)) => wakers.push(self.waker.clone()),
                None => held.push((self.relay.clone(), smallvec![self.waker.clone()])),
            },
            None => self.relay.send(smallvec![self.waker.clone()]),
        });
    }
}

thread_local! {
    /// Whom this thread wakes at the end of [`together`].
    static HELD: RefCell<Option<Vec<(Relay, Wakers)>>> = const { RefCell::new(None) };
}

/// Whom `work` wakes is woken at its end. Without this a thread that runs at once goes on with the first task before the
/// second one is woken, and has to be woken again.
pub fn together<T>(work: impl FnOnce() -> T) -> T {
    let outer = HELD.replace(Some(vec![]));
    let result = work();
    let held = HELD.replace(outer).unwrap_or_default();
    held.into_iter().for_each(|(relay, wakers)| relay.send(wakers));
    result
}

impl Relay {
    /// A relay, and what its thread is to [`run`].
    pub fn new() -> (Self, Woken) {
        let (relay, woken) = mpsc::unbounded_channel();
        (Self(relay), woken)
    }

    fn send(&self, wakers: Wakers) {
        // When the thread has ended there is nobody to wake.
        let _ = self.0.send(wakers);
    }

    /// The result of `future`, which another thread brings about.
    pub async fn wait<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| {
            let waker = Waker::from(Arc::new(Relayed { relay: self.clone(), waker: cx.waker().clone() }));
            future.as_mut().poll(&mut Context::from_waker(&waker))
        })
        .await
    }
}

/// Wakes whom other threads wake; runs as long as there is a relay.
pub async fn run(mut woken: Woken) {
    while let Some(wakers) = woken.recv().await {
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_thread_is_woken_once_for_all_its_tasks() {
        let (relay, mut woken) = Relay::new();
        let (tasks, thread) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let (task_waker, thread_waker) = (Waker::from(Arc::clone(&tasks)), Waker::from(Arc::clone(&thread)));
        let mut thread_cx = Context::from_waker(&thread_waker);
        assert!(woken.poll_recv(&mut thread_cx).is_pending());
        let (senders, mut waiting): (Vec<_>, Vec<_>) = (0..3)
            .map(|_| {
                let (sender, receiver) = tokio::sync::oneshot::channel::<u8>();
                let relay = relay.clone();
                (sender, Box::pin(async move { relay.wait(receiver).await }))
            })
            .unzip();
        for one in &mut waiting {
            assert!(one.as_mut().poll(&mut Context::from_waker(&task_waker)).is_pending());
        }
        together(|| {
            senders.into_iter().for_each(|sender| sender.send(7).unwrap());
            assert_eq!(thread.0.load(Ordering::SeqCst), 0);
        });
        assert_eq!((thread.0.load(Ordering::SeqCst), tasks.0.load(Ordering::SeqCst)), (1, 0));
        woken.try_recv().unwrap().into_iter().for_each(Waker::wake);
        assert!(woken.try_recv().is_err());
        assert_eq!(tasks.0.load(Ordering::SeqCst), 3);
    }
}
