use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::service::{Service, service_fn};
use vestibule_protocol::scope::{Texts, encode};

use super::*;

/// A connection that came by a rule about this host, and all below `/api`.
fn info() -> ConnectionInfo {
    let (hosts, paths) = (vec!["app.example".to_owned()], vec!["/api/*".to_owned()]);
    let rule = Texts { hosts: Some(&hosts), paths: Some(&paths), ..Texts::default() };
    let scope = Scope::decode(&encode([rule])).unwrap();
    let facts = vestibule_protocol::ConnectionInfo {
        scope: Some(Arc::new(scope)),
        ..vestibule_protocol::ConnectionInfo::default()
    };
    ConnectionInfo::new(facts, vestibule_protocol::Data::NONE, None)
}

fn scope() -> WorkerScope {
    let (ours, _theirs) = vestibule_protocol::sys::seqpacket_pair().unwrap();
    WorkerScope::from_descriptor(ours).unwrap()
}

fn request(version: Version, uri: &str, lines: &[(&str, &str)]) -> Request<String> {
    let mut request = Request::builder().version(version).uri(uri);
    for (name, value) in lines {
        request = request.header(*name, *value);
    }
    request.body(String::new()).unwrap()
}

/// Asks for each, in turn: the status, and whether the connection closes.
fn ask(requests: Vec<Request<String>>) -> (Vec<(u16, bool)>, usize) {
    let served = AtomicUsize::new(0);
    let service = service_fn(|request: Request<String>| {
        assert!(request.extensions().get::<ConnectionInfo>().is_some());
        served.fetch_add(1, Ordering::Relaxed);
        async { Ok::<_, Infallible>(Response::new(String::from("here"))) }
    });
    let guarded = scope().guard_requests(&info(), service);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let answers = requests.into_iter().map(|request| {
        let answer = runtime.block_on(Service::call(&guarded, request)).unwrap();
        (answer.status().as_u16(), answer.headers().contains_key(CONNECTION))
    });
    let answers = answers.collect();
    (answers, served.into_inner())
}

#[test]
fn what_is_behind_tls_is_told_421_where_it_is_another_workers_and_closes() {
    let host = [("host", "app.example")];
    let get = |uri| request(Version::HTTP_11, uri, &host);
    let all = vec![get("/api/x"), get("/api/../admin"), get("/api?x"), get("/")];
    assert_eq!(ask(all), (vec![(200, false), (421, true), (200, false), (421, true)], 2));
    // The first is what was decided about, whatever it is.
    let first = vec![get("/admin"), get("/admin")];
    assert_eq!(ask(first), (vec![(200, false), (421, true)], 1));
}

#[test]
fn http2_goes_on_after_421_and_its_authority_is_a_host() {
    let get = |uri, lines: &[_]| request(Version::HTTP_2, uri, lines);
    let all = vec![
        get("https://app.example/admin", &[]),
        get("https://app.example/api/x", &[]),
        get("https://app.example/admin", &[]),
        get("https://other.example/api/x", &[]),
        get("https://app.example/api/y", &[("host", "app.example")]),
        get("https://app.example/api/y", &[("host", "other.example")]),
        get("/api/y", &[("host", "app.example")]),
        get("/api/y", &[]),
    ];
    let expected = [200, 200, 421, 421, 200, 421, 200, 421].map(|status| (status, false));
    assert_eq!(ask(all), (expected.to_vec(), 4));
}

#[test]
fn requests_of_a_connection_whose_decision_holds_for_all_are_not_looked_at() {
    let facts = vestibule_protocol::ConnectionInfo::default();
    let info = ConnectionInfo::new(facts, vestibule_protocol::Data::NONE, None);
    let service = service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::<String>::default())
    });
    let guarded = scope().guard_requests(&info, service);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for uri in ["/", "/admin", "*"] {
        let asked = request(Version::HTTP_11, uri, &[]);
        assert_eq!(runtime.block_on(Service::call(&guarded, asked)).unwrap().status(), 200);
    }
}
