//! How many streams may be open, whose, and which of them goes when there are too many.
//!
//! An [`Admission`] gives out [`Place`]s. It promises that no more are out than its [`Limits`]
//! allow (in all, for one user, for one address), that none is given out while memory is short, and
//! that a client which takes nothing out of its stream loses it: at [`STALLED`] in any case, and
//! before everybody else when memory runs out. Who takes all that it is given goes only if memory stays
//! short once those are gone. A client that is given a whole answer instead has to take it at a pace
//! ([`Taking`]), or loses its connection too. It knows neither HTTP nor what a stream carries.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::memory::Pressure;
use crate::shutdown::Shutdown;

/// How many streams may be open. A limit of 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub total: usize,
    /// For one user: everybody with the same role and claims.
    pub per_user: usize,
    /// For one address, of those who are no user. Addresses of this machine and of private networks
    /// are not counted: there is a proxy, or everybody.
    pub per_address: usize,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// As many as the relay takes.
    #[error("the relay has {0} open streams, which is as many as it takes")]
    Total(usize),
    /// As many as one user gets.
    #[error("this user has {0} open streams, which is as many as one user gets")]
    User(usize),
    /// As many as one address gets.
    #[error("this address has {0} open streams without a token, which is as many as one gets")]
    Address(usize),
    /// Memory is short.
    #[error("the relay is short of memory")]
    Memory,
}

impl Full {
    /// One word for a counter.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Total(_) => "total",
            Self::User(_) => "user",
            Self::Address(_) => "address",
            Self::Memory => "memory",
        }
    }
}

/// Who asks for a place.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// The same text for the same user; `None` for those who brought no token.
    pub user: Option<&'a str>,
    /// Where from.
    pub address: Option<IpAddr>,
}

/// Cuts the connection that a stream is on. Whoever answers something on a connection has a pair of the same.
#[derive(Clone, Debug, Default)]
pub struct Scissors(Arc<Notify>);

impl Scissors {
    /// Cuts, now or when somebody waits for it.
    pub fn cut(&self) {
        self.0.notify_one();
    }

    /// Whether nobody else has a pair, so that nothing is answered on the connection.
    #[must_use]
    pub fn are_left_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Waits for the cut.
    pub async fn used(&self) {
        self.0.notified().await;
    }
}

/// A stream whose client has taken nothing for so long is cut, also where other streams of the same
/// connection go on. Longer than the connection's own limit, which is told apart in the counters.
pub const STALLED: Duration = Duration::from_secs(20);
/// A client may take so long for an answer besides the time that its bytes give it.
const GRACE: Duration = Duration::from_mins(1);
/// Bytes of an answer that have to be taken in a second, on the whole: six answers at once over a line of
/// 50 KiB a second are quicker.
const PACE: u64 = 8 * 1024;
/// How often streams are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Of all streams, one in so many is cut at each look while memory runs out.
const SHED: usize = 20;
/// How long it takes until what a stream held is memory of the system again, with some air: the allocator
/// keeps what is free for a second (`.cargo/config.toml`).
const RETURNS: Duration = Duration::from_secs(3);

/// Gives out places. Cheap to clone; clones are the same.
#[derive(Clone, Debug)]
pub struct Admission {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limits: Limits,
    pressure: watch::Receiver<Pressure>,
    begun: Instant,
    keys: RandomState,
    /// A standard mutex: held for a few look-ups, and for one walk at each look.
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    users: HashMap<u64, usize>,
    addresses: HashMap<IpAddr, usize>,
    streams: HashMap<u64, Stream>,
    answers: HashMap<u64, Answer>,
    /// When somebody was last cut for want of memory.
    shed: Option<Instant>,
}

#[derive(Debug)]
struct Stream {
    /// See [`Place::handed`].
    handed: Arc<AtomicU64>,
    scissors: Scissors,
    /// Its scissors were used. It may stay for as long as others on its connection are being answered, and
    /// is to be counted once.
    is_cut: bool,
}

impl Stream {
    /// Cuts it, if that is not done already. Whether it was not.
    fn cut(&mut self) -> bool {
        let first = !std::mem::replace(&mut self.is_cut, true);
        if first {
            self.scissors.cut();
        }
        first
    }
}

#[derive(Debug)]
struct Answer {
    /// See [`Taking::late`].
    late: Arc<AtomicU64>,
    scissors: Scissors,
}

/// What was cut at one look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Streams whose clients took nothing for [`STALLED`].
    pub stalled: usize,
    /// Streams that had to go for want of memory.
    pub memory: usize,
    /// Answers that were taken too slowly.
    pub answers: usize,
}

impl Admission {
    /// Nobody is there yet.
    #[must_use]
    pub fn new(limits: Limits, pressure: watch::Receiver<Pressure>) -> Self {
        let shared = Shared {
            limits,
            pressure,
            begun: Instant::now(),
            keys: RandomState::new(),
            open: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// A place for a stream on the connection that `scissors` cut.
    ///
    /// # Errors
    /// [`Full`].
    pub fn admit(&self, guest: Guest<'_>, scissors: Scissors) -> Result<Place, Full> {
        let limits = &self.shared.limits;
        if *self.shared.pressure.borrow() != Pressure::Low {
            return Err(Full::Memory);
        }
        let mut open = self.shared.lock();
        if is_reached(limits.total, open.streams.len()) {
            return Err(Full::Total(limits.total));
        }
        let user = guest.user.map(|user| self.shared.keys.hash_one(user));
        let address = guest.address.map(|address| address.to_canonical());
        let address = address.filter(|address| user.is_none() && is_one_guest(*address));
        let address = address.map(network);
        if let Some(user) = user
            && is_reached(limits.per_user, open.users.get(&user).copied().unwrap_or(0))
        {
            return Err(Full::User(limits.per_user));
        }
        if let Some(address) = &address
            && is_reached(
                limits.per_address,
                open.addresses.get(address).copied().unwrap_or(0),
            )
        {
            return Err(Full::Address(limits.per_address));
        }
        if let Some(user) = user {
            *open.users.entry(user).or_default() += 1;
        }
        if let Some(address) = address {
            *open.addresses.entry(address).or_default() += 1;
        }
        let number = open.next;
        open.next += 1;
        let handed = Arc::new(AtomicU64::new(0));
        let stream = Stream {
            handed: Arc::clone(&handed),
            scissors,
            is_cut: false,
        };
        open.streams.insert(number, stream);
        drop(open);
        Ok(Place {
            shared: Arc::clone(&self.shared),
            number,
            user,
            address,
            handed,
        })
    }

    /// Looks after an answer until it is taken: the client on the connection that `scissors` cut has to
    /// take some of it every [`STALLED`], and all of it at a pace that a bad line still has.
    #[must_use]
    pub fn taking(&self, scissors: Scissors) -> Taking {
        let begun = self.shared.now();
        let late = Arc::new(AtomicU64::new(begun + millis(STALLED)));
        let answer = Answer {
            late: Arc::clone(&late),
            scissors,
        };
        let mut open = self.shared.lock();
        let number = open.next;
        open.next += 1;
        open.answers.insert(number, answer);
        drop(open);
        Taking {
            shared: Arc::clone(&self.shared),
            number,
            begun,
            handed: AtomicU64::new(0),
            late,
        }
    }

    /// Cuts those who take nothing, and while memory runs out the slowest of all, until the stop
    /// signal. `told` hears of each look that cut somebody.
    pub async fn watch(self, shutdown: Shutdown, told: impl Fn(Cut)) {
        let look = async {
            let mut was_short = false;
            loop {
                tokio::time::sleep(LOOK).await;
                let short = *self.shared.pressure.borrow() == Pressure::Severe;
                if short && !was_short {
                    // Connections on which nothing is answered go by themselves, and what they held is not
                    // the system's again at once.
                    self.shared.lock().shed = Some(Instant::now());
                }
                was_short = short;
                let cut = self.look(short);
                if cut != Cut::default() {
                    told(cut);
                }
            }
        };
        tokio::select! {
            _grace = shutdown.begun() => {}
            () = look => {}
        }
    }

    /// One look: `short` when memory runs out.
    fn look(&self, short: bool) -> Cut {
        let now = self.shared.now();
        let mut open = self.shared.lock();
        let open = &mut *open;
        let mut late: Vec<(u64, u64)> = Vec::new();
        for (number, stream) in &open.streams {
            let handed = stream.handed.load(Ordering::Relaxed);
            if handed > 0 {
                late.push((handed, *number));
            }
        }
        late.sort_unstable();
        let limit = now.saturating_sub(millis(STALLED));
        let stalled = late.partition_point(|(handed, _)| *handed < limit);
        let (stalled, slow) = late.split_at(stalled);
        let mut cut = Cut::default();
        for (_, number) in stalled {
            let stream = open.streams.get_mut(number);
            cut.stalled += usize::from(stream.is_some_and(Stream::cut));
        }
        for answer in open.answers.values() {
            if now > answer.late.load(Ordering::Relaxed) {
                answer.scissors.cut();
                // Once is enough, and is counted once.
                answer.late.store(u64::MAX, Ordering::Relaxed);
                cut.answers += 1;
            }
        }
        if short {
            // The slowest first: they keep the most from others. Once they are gone and what they held is
            // free, the latest, who have seen least.
            let most = open.streams.len().div_ceil(SHED);
            let mut those: Vec<u64> = slow.iter().map(|(_, number)| *number).collect();
            let returned = open.shed.is_none_or(|at| at.elapsed() >= RETURNS);
            if late.is_empty() && returned {
                those.extend(open.streams.keys());
                those.sort_unstable_by(|a, b| b.cmp(a));
            }
            for number in those {
                if cut.stalled + cut.memory >= most {
                    break;
                }
                let stream = open.streams.get_mut(&number);
                cut.memory += usize::from(stream.is_some_and(Stream::cut));
            }
            if cut.memory > 0 {
                open.shed = Some(Instant::now());
            }
        }
        cut
    }
}

/// Whether a limit leaves no room beside `there`.
fn is_reached(limit: usize, there: usize) -> bool {
    limit > 0 && there >= limit
}

/// What one client has of addresses: of those of IPv6, 64 bits are its own to choose.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

/// Whether an address can be taken for one client.
fn is_one_guest(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            !(address.is_loopback() || address.is_private() || address.is_link_local())
        }
        IpAddr::V6(address) => {
            !(address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local())
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().expect("nothing panics while holding it")
    }

    /// Milliseconds since the beginning, and never 0.
    fn now(&self) -> u64 {
        millis(self.begun.elapsed()) + 1
    }
}

/// A stream's place; dropping it makes room.
#[derive(Debug)]
pub struct Place {
    shared: Arc<Shared>,
    number: u64,
    user: Option<u64>,
    address: Option<IpAddr>,
    /// When the client was handed bytes that it has not taken yet; 0 when it waits for us.
    handed: Arc<AtomicU64>,
}

impl Place {
    /// Bytes were handed over; until the next question the client is to take them.
    pub fn handed(&self) {
        self.handed.store(self.shared.now(), Ordering::Relaxed);
    }

    /// The client has taken everything and waits for more.
    pub fn waits(&self) {
        self.handed.store(0, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.shared.lock();
        open.streams.remove(&self.number);
        if let Some(user) = self.user {
            leave(&mut open.users, &user);
        }
        if let Some(address) = self.address {
            leave(&mut open.addresses, &address);
        }
    }
}

/// An answer that is being taken; dropping it says that all of it is.
#[derive(Debug)]
pub struct Taking {
    shared: Arc<Shared>,
    number: u64,
    begun: u64,
    /// Bytes that were handed over.
    handed: AtomicU64,
    /// When the client has taken too little, unless something happens before.
    late: Arc<AtomicU64>,
}

impl Taking {
    /// So many more bytes are handed over: the client has taken those before, or nearly so.
    pub fn handed(&self, bytes: usize) {
        let bytes = bytes as u64;
        let handed = self.handed.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let pace = self.begun + millis(GRACE) + handed * 1000 / PACE;
        let late = pace.min(self.shared.now() + millis(STALLED));
        self.late.store(late, Ordering::Relaxed);
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        self.shared.lock().answers.remove(&self.number);
    }
}

fn leave<K: std::hash::Hash + Eq>(there: &mut HashMap<K, usize>, who: &K) {
    if let Some(count) = there.get_mut(who) {
        *count -= 1;
        if *count == 0 {
            there.remove(who);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const PIECE: usize = 16 * 1024;
    const LIMITS: Limits = Limits {
        total: 4,
        per_user: 2,
        per_address: 2,
    };

    fn admission(limits: Limits) -> (Admission, watch::Sender<Pressure>) {
        let (pressure, felt) = watch::channel(Pressure::Low);
        (Admission::new(limits, felt), pressure)
    }

    fn guest<'a>(user: Option<&'a str>, address: &str) -> Guest<'a> {
        Guest {
            user,
            address: Some(address.parse().unwrap()),
        }
    }

    fn enter(admission: &Admission, user: Option<&str>, address: &str) -> Result<Place, Full> {
        admission.admit(guest(user, address), Scissors::default())
    }

    #[test]
    fn a_user_and_an_address_and_all_together_have_a_limit_each() {
        let (admission, _pressure) = admission(LIMITS);
        let ann = [
            enter(&admission, Some("ann"), "192.0.2.1").unwrap(),
            enter(&admission, Some("ann"), "192.0.2.2").unwrap(),
        ];
        let refused = enter(&admission, Some("ann"), "192.0.2.3").unwrap_err();
        assert_eq!(refused, Full::User(2));
        let strangers = [
            enter(&admission, None, "192.0.2.1").unwrap(),
            enter(&admission, None, "::ffff:192.0.2.1").unwrap(),
        ];
        let refused = enter(&admission, None, "192.0.2.9").unwrap_err();
        assert_eq!(refused, Full::Total(4));
        drop(ann);
        let refused = enter(&admission, None, "192.0.2.1").unwrap_err();
        assert_eq!(refused, Full::Address(2));
        // Who says who he is does not suffer from others behind the same address.
        let bob = enter(&admission, Some("bob"), "192.0.2.1");
        assert!(bob.is_ok());
        drop((bob, strangers));
        assert_eq!(admission.shared.lock().users.len(), 0);
        assert_eq!(admission.shared.lock().addresses.len(), 0);
        assert_eq!(admission.shared.lock().streams.len(), 0);
    }

    #[test]
    fn one_client_of_ipv6_has_many_addresses() {
        let (admission, _pressure) = admission(LIMITS);
        let _two = [
            enter(&admission, None, "2001:db8:1:2::1").unwrap(),
            enter(&admission, None, "2001:db8:1:2:ffff::9").unwrap(),
        ];
        let refused = enter(&admission, None, "2001:db8:1:2:3:4:5:6").unwrap_err();
        assert_eq!(refused, Full::Address(2));
        assert!(enter(&admission, None, "2001:db8:1:3::1").is_ok());
    }

    #[test]
    fn nobody_is_counted_by_an_address_that_many_share_and_zero_is_no_limit() {
        let limits = Limits {
            total: 0,
            per_user: 0,
            ..LIMITS
        };
        let (admission, _pressure) = admission(limits);
        let mut places = Vec::new();
        for address in ["127.0.0.1", "::1", "10.1.2.3", "192.168.0.9", "fd00::1"] {
            for _ in 0..3 {
                places.push(enter(&admission, None, address).unwrap());
                places.push(enter(&admission, Some("ann"), address).unwrap());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_cut_and_nobody_else() {
        let (admission, _pressure) = admission(LIMITS);
        let scissors = [Scissors::default(), Scissors::default()];
        let place = |at: usize| {
            let nobody = guest(None, "127.0.0.1");
            admission.admit(nobody, scissors[at].clone()).unwrap()
        };
        let (slow, quick) = (place(0), place(1));
        for _ in 0..6 {
            slow.handed
                .compare_exchange(
                    0,
                    admission.shared.now(),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .ok();
            quick.handed();
            quick.waits();
            tokio::time::advance(Duration::from_secs(4)).await;
        }
        let cut = admission.look(false);
        assert_eq!((cut.stalled, cut.memory), (1, 0));
        // It stays while its connection answers others, and is counted once.
        assert_eq!(admission.look(true), Cut::default());
        assert!(scissors[0].used().now_or_never().is_some());
        assert!(scissors[1].used().now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_taken_at_a_pace_or_its_connection_is_cut() {
        let (admission, _pressure) = admission(LIMITS);
        let scissors: Vec<Scissors> = (0..4).map(|_| Scissors::default()).collect();
        let [stuck, trickling, slow, taken] =
            [0, 1, 2, 3].map(|at: usize| admission.taking(scissors[at].clone()));
        for answer in [&stuck, &trickling, &slow, &taken] {
            answer.handed(PIECE);
        }
        drop(taken);
        // One takes something now and then, one as much as a bad line gives to each of four.
        let mut cut = Vec::new();
        for second in 1..=600 {
            tokio::time::advance(Duration::from_secs(1)).await;
            slow.handed((50 << 10) / 4);
            if second % 15 == 0 && cut.len() < 2 {
                trickling.handed(PIECE);
            }
            for _ in 0..admission.look(false).answers {
                cut.push(second);
            }
        }
        assert_eq!(cut.len(), 2, "{cut:?}");
        assert!((20..22).contains(&cut[0]), "{cut:?}");
        assert!((60..80).contains(&cut[1]), "{cut:?}");
        let used: Vec<bool> = scissors
            .iter()
            .map(|scissors| scissors.used().now_or_never().is_some())
            .collect();
        assert_eq!(used, [true, true, false, false]);
        drop((stuck, trickling, slow));
        assert!(admission.shared.lock().answers.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn without_memory_nobody_comes_in_and_the_slowest_go_first() {
        let limits = Limits { total: 0, ..LIMITS };
        let (admission, pressure) = admission(limits);
        let scissors: Vec<Scissors> = (0..40).map(|_| Scissors::default()).collect();
        let places: Vec<Place> = scissors
            .iter()
            .map(|scissors| {
                let nobody = guest(None, "127.0.0.1");
                admission.admit(nobody, scissors.clone()).unwrap()
            })
            .collect();
        tokio::time::advance(Duration::from_secs(1)).await;
        places[7].handed();
        tokio::time::advance(Duration::from_secs(1)).await;
        places[3].handed();
        places[5].handed();
        pressure.send_replace(Pressure::High);
        assert_eq!(
            enter(&admission, None, "127.0.0.1").unwrap_err(),
            Full::Memory
        );
        // Two of forty at a look.
        assert_eq!(admission.look(true).memory, 2);
        let cut: Vec<usize> = (0..40)
            .filter(|at| scissors[*at].used().now_or_never().is_some())
            .collect();
        assert!(cut == [3, 7] || cut == [5, 7], "{cut:?}");
        // They are still there at the next look, and it is another one's turn.
        assert_eq!(admission.look(true).memory, 1);
        assert!(scissors[8 - cut[0]].used().now_or_never().is_some());
        for place in &places {
            place.waits();
        }
        // Nobody is slow: those who came last, but not before the memory of those before is back.
        assert_eq!(admission.look(true), Cut::default());
        tokio::time::advance(RETURNS).await;
        assert_eq!(admission.look(true).memory, 2);
        assert!(scissors[39].used().now_or_never().is_some());
        assert!(scissors[38].used().now_or_never().is_some());
        drop(places);
        assert_eq!(admission.look(true), Cut::default());
        pressure.send_replace(Pressure::Low);
        assert!(enter(&admission, None, "127.0.0.1").is_ok());
    }
}
