//! What a plan's bytes may be, and what they may not.

use super::*;

fn fixed() -> Fixed {
    let capabilities = Capabilities { inheritable: 1, permitted: 2, bounding: 3, ambient: 4 };
    let mut limits = [(0, u64::MAX); LIMITS];
    limits[7] = (1024, 4096);
    let mut processors = [0; PROCESSOR_WORDS];
    processors[15] = 1 << 63;
    Fixed {
        only: Some((u64::MAX, 7)),
        identity: Some(Identity { uid: 64_055, gid: 107, capabilities }),
        no_new_privs: true,
        umask: 0o27,
        nice: -5,
        policy: 1,
        priority: 99,
        processors,
        ignored: 1,
        blocked: 1 << 63,
        limits,
    }
}

const FDS: [(i32, i32); 3] = [(3, 0), (9, 2), (1 << 20, 1)];
const LISTS: Lists<'_, &CStr> = Lists {
    fds: &FDS,
    groups: &[0, 107, u32::MAX],
    own_pid: c"LISTEN_PID",
    cwd: c"/",
    programs: &[c"/bin/x", c"/usr/bin/x"],
    argv: &[c"x", c"", c"-y"],
    env: &[c"A=b"],
};

fn encoded(fixed: &Fixed, lists: &Lists<'_, &CStr>) -> Vec<u8> {
    let mut out = Vec::new();
    Plan::encode(fixed, lists, &mut out).unwrap();
    out
}

#[test]
fn a_plan_survives_the_way_there_and_back() {
    let bytes = encoded(&fixed(), &LISTS);
    let plan = Plan::decode(&bytes).unwrap();
    assert_eq!(plan.fixed, fixed());
    assert_eq!(plan.fds.iter().collect::<Vec<_>>(), FDS);
    let groups: Vec<u32> = plan.groups.chunks(4).map(|c| u32::from_ne_bytes(c.try_into().unwrap())).collect();
    assert_eq!(groups, LISTS.groups);
    assert_eq!((plan.own_pid, plan.cwd), (LISTS.own_pid, LISTS.cwd));
    assert_eq!(plan.programs.collect::<Vec<_>>(), LISTS.programs);
    assert_eq!((plan.argv.len(), plan.argv.collect::<Vec<_>>()), (3, LISTS.argv.to_vec()));
    assert_eq!(plan.env.collect::<Vec<_>>(), LISTS.env);
    let (plain, none) = (Fixed::default(), Lists { fds: &[], groups: &[], own_pid: c"", env: &[], ..LISTS });
    let bytes = encoded(&plain, &none);
    let plan = Plan::decode(&bytes).unwrap();
    assert_eq!((plan.fixed, plan.fds.is_empty(), plan.env.is_empty()), (plain, true, true));
}

#[test]
fn groups_are_aligned() {
    let bytes = encoded(&fixed(), &LISTS);
    let plan = Plan::decode(&bytes).unwrap();
    let offset = plan.groups.as_ptr() as usize - bytes.as_ptr() as usize;
    assert_eq!(offset, FIXED_LEN + FDS.len() * FD_LEN);
    assert_eq!(offset % 4, 0);
}

#[test]
fn every_cut_and_every_extra_byte_is_malformed() {
    let whole = encoded(&fixed(), &LISTS);
    for cut in 0..whole.len() {
        assert_eq!(Plan::decode(&whole[..cut]), Err(Malformed), "cut at {cut}");
    }
    assert_eq!(Plan::decode(&[&whole[..], &[0]].concat()), Err(Malformed));
    // Also where the length says so.
    for len in [whole.len() - 1, whole.len() + 1] {
        let mut other = whole.clone();
        other.resize(len, 0);
        other[8..16].copy_from_slice(&(len as u64).to_ne_bytes());
        assert_eq!(Plan::decode(&other), Err(Malformed), "{len} bytes");
    }
}

#[test]
fn fds_that_could_not_be_are_malformed() {
    for fds in [&[(2, 0)][..], &[(3, -1)], &[(4, 0), (4, 1)], &[(5, 0), (4, 1)], &[(-1, 0)], &[(3, i32::MAX)]] {
        let bytes = encoded(&fixed(), &Lists { fds, ..LISTS });
        assert_eq!(Plan::decode(&bytes), Err(Malformed), "{fds:?}");
    }
    for lists in [Lists { programs: &[], ..LISTS }, Lists { argv: &[], ..LISTS }] {
        assert_eq!(Plan::decode(&encoded(&fixed(), &lists)), Err(Malformed), "nothing to run");
    }
}

/// Any byte of the head may be anything: the reader gives a plan or an error, and strings end where they lie.
#[test]
fn no_byte_leads_the_reader_astray() {
    let whole = encoded(&fixed(), &LISTS);
    for at in 0..whole.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut other = whole.clone();
            other[at] = value;
            let Ok(plan) = Plan::decode(&other) else { continue };
            let strings = plan.programs.chain(plan.argv).chain(plan.env).map(|s| s.count_bytes() + 1);
            let rest = plan.own_pid.count_bytes() + plan.cwd.count_bytes() + 2;
            let lists = plan.fds.len() * FD_LEN + plan.groups.len();
            assert_eq!(strings.sum::<usize>() + rest + lists + FIXED_LEN, whole.len(), "byte {at}: {value}");
        }
    }
    for at in 0..8 {
        let mut other = whole.clone();
        other[at] ^= 0x80;
        assert_eq!(Plan::decode(&other), Err(Malformed), "byte {at} of magic and version");
    }
}
