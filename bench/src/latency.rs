//! Round trips: closed loop, or at even times.
//!
//! One connection has a thread that blocks: one wake-up an answer. Many share one thread and an epoll, as the server's
//! do, so that what is measured is the way between them and not a hundred threads.
//!
//! At a fixed rate an answer's time counts from when the request was *meant* to leave. One connection asks at these times
//! whatever has been answered; of many, one that is still waiting asks as soon as it is answered, and that request's time
//! counts from when it was meant to leave all the same: no omission is coordinated with the load.

use std::collections::BinaryHeap;
use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use clap::Args;
use hdrhistogram::Histogram;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::load::{Common, Window, all_threads};
use crate::outcome::{Outcome, float, histogram};
use crate::serve::{ECHO, MANY, connect};
use crate::target::{Stream, Target};

#[derive(Debug, Clone, Args)]
pub(crate) struct Latency {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Connections at once; more than one share a thread
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=8192))]
    pub(crate) connections: u16,
    /// Bytes of a request and of its answer
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=16 << 20))]
    pub(crate) size: u32,
    /// Requests a second of each connection, at even times; 0: the next one as soon as the last is answered. Beside a
    /// load that comes in bursts a closed loop asks most often when nothing is in its way, and its percentiles say so
    #[arg(long, default_value_t = 0)]
    pub(crate) rate: u32,
}

pub(crate) fn once(args: &Latency, target: &Target) -> Result<Outcome, String> {
    let (wish, blocking) = if args.connections == 1 { (ECHO, true) } else { (MANY, false) };
    let streams: Vec<Stream> =
        (0..args.connections).map(|_| connect(target, wish, args.size)).collect::<Result<_, _>>()?;
    let window = Window::starting(&args.common)?;
    let (job_args, job_window) = (args.clone(), window.clone());
    let job = move || {
        let rate = Rate { per_s: job_args.rate, connections: u32::from(job_args.connections) };
        if blocking {
            let stream = streams.into_iter().next().expect("one connection");
            closed_or_paced(stream, job_args.size as usize, &rate, &job_window)
        } else {
            Many::new(streams, job_args.size as usize, rate, job_window)?.run()
        }
    };
    let (all, seen) = all_threads(&args.common, &window, std::iter::once(job))?;
    let times = &all[0];
    let mut outcome = Outcome::new("latency", target);
    outcome.set("requests_per_s", float(times.len()) / window.seconds());
    outcome.set_times("", times);
    seen.put(&mut outcome, times.len());
    Ok(outcome)
}

pub(crate) fn text(args: &Latency, outcome: &Outcome) -> String {
    let f = |name| outcome.shown(name);
    let mut line = format!(
        "latency: {} connections, {} B: p50 {:.1} us, p90 {:.1} us, p99 {:.1} us, p99.9 {:.1} us, {:.0} requests/s",
        args.connections,
        args.size,
        f("p50_us"),
        f("p90_us"),
        f("p99_us"),
        f("p999_us"),
        f("requests_per_s"),
    );
    if let Some(cpu) = outcome.figure("cpu_s_per_100k") {
        line += &format!(", {cpu:.2} CPU s per 100k requests");
    }
    for (name, calls) in outcome.figures.iter().filter(|(n, _)| n.starts_with("calls_per_request:")) {
        line += &format!(", {calls:.3} {name}");
    }
    line
}

/// When requests are meant to leave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    /// 0: closed loop.
    pub(crate) per_s: u32,
    pub(crate) connections: u32,
}

impl Rate {
    /// Even times, and the connections evenly between them. `None`: at once.
    fn due(&self, connection: u32, request: u64) -> Option<Duration> {
        let gap = 1_000_000_000_u64.checked_div(u64::from(self.per_s))?;
        Some(Duration::from_nanos(gap * request + gap * u64::from(connection) / u64::from(self.connections)))
    }
}

/// Bytes that are no other request's.
fn fill(request: &mut [u8], connection: u32, number: u64) {
    let name = [u64::from(connection).to_le_bytes(), number.to_le_bytes()].concat();
    for (i, byte) in request.iter_mut().enumerate() {
        *byte = name.get(i).copied().unwrap_or_else(|| u8::try_from((i as u64 + number) % 251).expect("below 251"));
    }
    // Of a small request the number's lowest byte is what changes.
    if let Some(first) = request.first_mut() {
        *first = first.wrapping_add(number.to_le_bytes()[0]);
    }
}

/// One connection: each request when the last one is answered, or all of them when they are meant to leave.
///
/// # Errors
/// One line: the connection's end, or another answer than was asked for.
pub(crate) fn closed_or_paced(
    stream: Stream,
    size: usize,
    rate: &Rate,
    window: &Window,
) -> Result<Histogram<u64>, String> {
    // The kernel may else sleep 50 us longer, which would be counted as the proxy's.
    nix::sys::prctl::set_timerslack(1).map_err(|e| format!("timer slack: {e}"))?;
    if rate.per_s == 0 { closed(stream, size, window) } else { paced(stream, size, *rate, window) }
}

fn closed(mut stream: Stream, size: usize, window: &Window) -> Result<Histogram<u64>, String> {
    let (mut times, mut asked, mut got) = (histogram(), vec![0; size], vec![0; size]);
    for number in 0.. {
        let asked_at = window.now();
        if window.is_over(asked_at) {
            break;
        }
        fill(&mut asked, 0, number);
        stream.write_all(&asked).map_err(|e| format!("write: {e}"))?;
        stream.read_exact(&mut got).map_err(|e| format!("read: {e}"))?;
        if window.counts(asked_at) {
            times.saturating_record(window.since(asked_at));
        }
        if got != asked {
            return Err("another answer than was asked for came back".into());
        }
    }
    Ok(times)
}

/// A thread asks at the times that are meant, whatever has been answered; this one takes the answers, which come in
/// the order of the requests.
fn paced(mut stream: Stream, size: usize, rate: Rate, window: &Window) -> Result<Histogram<u64>, String> {
    let mut out = stream.try_clone().map_err(|e| format!("a connection: {e}"))?;
    let meant = move |number| rate.due(0, number).expect("there is a rate");
    let (its, mut request) = (window.clone(), vec![0; size]);
    let asking = std::thread::spawn(move || {
        // This thread's own; it sleeps as exactly as the other reads.
        nix::sys::prctl::set_timerslack(1).map_err(|e| format!("timer slack: {e}"))?;
        for number in 0.. {
            if its.is_over(meant(number)) {
                break;
            }
            std::thread::sleep(meant(number).saturating_sub(its.now()));
            fill(&mut request, 0, number);
            out.write_all(&request).map_err(|e| format!("write: {e}"))?;
        }
        Ok(())
    });
    let (mut times, mut wanted, mut got) = (histogram(), vec![0; size], vec![0; size]);
    for number in 0.. {
        if window.is_over(meant(number)) {
            break;
        }
        stream.read_exact(&mut got).map_err(|e| format!("read: {e}"))?;
        if window.counts(meant(number)) {
            times.saturating_record(window.since(meant(number)));
        }
        fill(&mut wanted, 0, number);
        if got != wanted {
            return Err("another answer than was asked for came back".into());
        }
    }
    asking.join().map_err(|_| "a thread panicked")?.map(|()| times)
}

/// Many connections of one thread.
struct Many {
    epoll: Epoll,
    timer: TimerFd,
    window: Window,
    rate: Rate,
    asked: Vec<Asker>,
    times: Histogram<u64>,
    got: Vec<u8>,
    /// When the next requests of idle connections are due: the earliest on top.
    due: BinaryHeap<std::cmp::Reverse<(Duration, u32)>>,
    /// Connections with an answer to come.
    busy: usize,
}

/// One connection.
struct Asker {
    stream: Stream,
    request: Vec<u8>,
    number: u64,
    asked_at: Duration,
    written: usize,
    read: usize,
}

const TIMER: u64 = u64::MAX;

impl Many {
    fn new(streams: Vec<Stream>, size: usize, rate: Rate, window: Window) -> Result<Self, String> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|e| format!("epoll: {e}"))?;
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK).map_err(|e| format!("timer: {e}"))?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER)).map_err(|e| format!("epoll: {e}"))?;
        let mut asked = Vec::new();
        for stream in streams {
            stream.set_nonblocking(true).map_err(|e| format!("a connection: {e}"))?;
            let event = EpollEvent::new(EpollFlags::EPOLLIN, asked.len() as u64);
            epoll.add(&stream, event).map_err(|e| format!("epoll: {e}"))?;
            let asker =
                Asker { stream, request: vec![0; size], number: 0, asked_at: Duration::ZERO, written: 0, read: 0 };
            asked.push(asker);
        }
        let (times, got, due) = (histogram(), vec![0; size], BinaryHeap::new());
        Ok(Self { epoll, timer, window, rate, asked, times, got, due, busy: 0 })
    }

    fn run(mut self) -> Result<Histogram<u64>, String> {
        nix::sys::prctl::set_timerslack(1).map_err(|e| format!("timer slack: {e}"))?;
        for connection in 0..u32::try_from(self.asked.len()).expect("a u16 of them") {
            self.next(connection)?;
        }
        let mut events = [EpollEvent::empty(); 256];
        while self.busy > 0 || !self.due.is_empty() {
            self.set_timer()?;
            let count = match self.epoll.wait(&mut events, EpollTimeout::from(10_000_u16)) {
                Ok(0) => return Err(format!("{} requests were not answered within 10 s", self.busy)),
                Err(nix::errno::Errno::EINTR) => continue,
                other => other.map_err(|e| format!("epoll: {e}"))?,
            };
            for event in &events[..count] {
                if event.data() == TIMER {
                    let _ = self.timer.wait();
                    self.ask_what_is_due()?;
                    continue;
                }
                let connection = u32::try_from(event.data()).expect("an index");
                if event.events().contains(EpollFlags::EPOLLOUT) {
                    self.write(connection)?;
                } else {
                    self.read(connection)?;
                }
            }
        }
        Ok(self.times)
    }

    /// The connection's next request: now, or when it is due; none when the time is over.
    fn next(&mut self, connection: u32) -> Result<(), String> {
        let now = self.window.now();
        let due = self.rate.due(connection, self.asked[connection as usize].number);
        if self.window.is_over(due.unwrap_or(now)) {
            return Ok(());
        }
        match due {
            Some(due) if due > now => self.due.push(std::cmp::Reverse((due, connection))),
            _ => self.ask(connection, due.unwrap_or(now))?,
        }
        Ok(())
    }

    fn ask_what_is_due(&mut self) -> Result<(), String> {
        while let Some(std::cmp::Reverse((due, connection))) = self.due.peek().copied() {
            if due > self.window.now() {
                break;
            }
            self.due.pop();
            self.ask(connection, due)?;
        }
        Ok(())
    }

    fn set_timer(&self) -> Result<(), String> {
        let Some(std::cmp::Reverse((due, _))) = self.due.peek() else { return Ok(()) };
        // Zero would stop it.
        let left = due.saturating_sub(self.window.now()).max(Duration::from_nanos(1));
        let at = Expiration::OneShot(TimeSpec::from(left));
        self.timer.set(at, TimerSetTimeFlags::empty()).map_err(|e| format!("timer: {e}"))
    }

    fn ask(&mut self, connection: u32, meant: Duration) -> Result<(), String> {
        let asker = &mut self.asked[connection as usize];
        fill(&mut asker.request, connection, asker.number);
        asker.number += 1;
        (asker.asked_at, asker.written, asker.read) = (meant, 0, 0);
        self.busy += 1;
        self.write(connection)
    }

    fn write(&mut self, connection: u32) -> Result<(), String> {
        let asker = &mut self.asked[connection as usize];
        let was_waiting = asker.written > 0;
        while asker.written < asker.request.len() {
            match asker.stream.write(&asker.request[asker.written..]) {
                Ok(count) => asker.written += count,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    // Both, lest the proxy wait for its answer to be taken.
                    return self.interest(connection, EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT);
                }
                Err(e) => return Err(format!("write: {e}")),
            }
        }
        if was_waiting { self.interest(connection, EpollFlags::EPOLLIN) } else { Ok(()) }
    }

    fn interest(&self, connection: u32, flags: EpollFlags) -> Result<(), String> {
        let stream = &self.asked[connection as usize].stream;
        let mut event = EpollEvent::new(flags, u64::from(connection));
        self.epoll.modify(stream, &mut event).map_err(|e| format!("epoll: {e}"))
    }

    fn read(&mut self, connection: u32) -> Result<(), String> {
        let asker = &mut self.asked[connection as usize];
        let left = asker.request.len() - asker.read;
        let count = match asker.stream.read(&mut self.got[..left]) {
            Ok(0) => return Err("a connection ended before its answer came".into()),
            Ok(count) => count,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(format!("read: {e}")),
        };
        if self.got[..count] != asker.request[asker.read..asker.read + count] {
            return Err("another answer than was asked for came back".into());
        }
        asker.read += count;
        if asker.read < asker.request.len() {
            return Ok(());
        }
        if self.window.counts(asker.asked_at) {
            self.times.saturating_record(self.window.since(asker.asked_at));
        }
        self.busy -= 1;
        self.next(connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_several_connections_are_meant_to_leave_at_even_times() {
        let rate = Rate { per_s: 100, connections: 2 };
        let ms = |c, r| rate.due(c, r).unwrap().as_millis();
        assert_eq!((ms(0, 0), ms(1, 0), ms(0, 1), ms(1, 3)), (0, 5, 10, 35));
        assert_eq!(Rate { per_s: 0, connections: 1 }.due(0, 7), None);
    }

    #[test]
    fn two_requests_are_not_alike() {
        for size in [1, 4, 64, 1000] {
            let (mut a, mut b) = (vec![0; size], vec![0; size]);
            fill(&mut a, 0, 1);
            fill(&mut b, 0, 2);
            assert_ne!(a, b);
        }
    }

    #[test]
    fn an_answer_that_is_late_makes_the_next_request_late_and_both_are_counted() {
        let (client, mut server) = std::os::unix::net::UnixStream::pair().unwrap();
        let answering = std::thread::spawn(move || {
            let mut byte = [0; 8];
            let mut count = 0;
            while server.read_exact(&mut byte).is_ok() {
                // One pause of ten periods.
                if count == 5 {
                    std::thread::sleep(Duration::from_millis(100));
                }
                count += 1;
                server.write_all(&byte).unwrap();
            }
        });
        let common = Common {
            connect: Vec::new(),
            seconds: 0.4,
            warm_up: 0.0,
            rounds: 1,
            watch: Vec::new(),
            count_calls: false,
            json: false,
        };
        let window = Window::starting(&common).unwrap();
        let rate = Rate { per_s: 100, connections: 1 };
        let times = closed_or_paced(Stream::Unix(client), 8, &rate, &window).unwrap();
        answering.join().unwrap();
        // All of the forty are there, and about ten of them waited: a closed loop would have seen one.
        assert_eq!(times.len(), 40);
        assert!(times.len() - times.count_between(0, 15_000_000) >= 7, "only the first of the late ones was counted");
    }
}
