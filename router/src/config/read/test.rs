//! `[[test]]`: what a connection is, and the route that it must take.

use super::super::problem::Problem;
use super::super::source::Sourced;
use super::super::tree::{Item, Report, Section};
use super::super::values;
use super::super::words::TEST;
use super::{TestDraft, open};
use crate::inspect::label::{Label, NONE};
use crate::inspect::normal;
use crate::route::imagine::Imagined;
use crate::route::pattern::NotAPattern;

pub(super) fn read(item: &Item<'_>, report: &mut Report) -> Option<TestDraft> {
    let table = open(item, report, &TEST)?;
    let user = table.optional(report, "peer-user", |item, report| {
        item.filled(report, "the name of a user").map(str::to_owned)
    });
    let peer = |item: &Item<'_>, report: &mut Report| {
        let text = item.text(report, "an address, such as `\"10.1.2.3\"`")?;
        report.take(&item.place, values::peer(text))
    };
    // A client of a Unix-domain socket has a user and no address.
    let peer = match user.value {
        Some(_) => Some(table.optional(report, "peer", peer)),
        None => table
            .need(report, "peer", peer)
            .map(|peer| Sourced { value: Some(peer.value), origin: peer.origin }),
    };
    let listener = table.item("listener").map(|item| {
        let value = item.text(report, "the name of a listener")?.to_owned();
        Some(Sourced { value, origin: item.origin() })
    });
    let expect = table.need(report, "expect", |item, report| {
        item.text(report, "the name of a route").map(str::to_owned)
    });
    let client = client(&table, report, user.value.clone());
    let listener = match listener {
        None => None,
        Some(listener) => Some(listener?),
    };
    let mut client = client?;
    let peer = peer?;
    client.peer = peer.value;
    let place = item.place.clone();
    let of = |key| table.item(key).map_or_else(|| place.clone(), |item| item.place);
    // Whether proxies may speak for it its listener says.
    let impossible = [false, true].map(|proxied| {
        client.shown(proxied).err().map(|impossible| (of(impossible.key()), impossible))
    });
    Some(TestDraft { place, peer, client, listener, expect: expect?, impossible })
}

/// What a client is besides its address.
fn client(table: &Section<'_>, report: &mut Report, user: Option<String>) -> Option<Imagined> {
    let wrong = report.mistakes.len();
    let context = table.optional(report, "peer-context", |item, report| {
        let text = item.text(report, "a security context, or `\"none\"`")?;
        if text == NONE {
            return Some(None);
        }
        let label = Label::parse(text).map_err(|error| Problem::NoLabel(text.to_owned(), error));
        report.take(&item.place, label).map(Some)
    });
    let name = |item: &Item<'_>, report: &mut Report| {
        let text = item.text(report, "a name, such as `\"app.example.org\"`")?;
        let name = normal::host(text).ok_or_else(|| NotAPattern::Host(text.to_owned()).into());
        report.take(&item.place, name).map(|_| text.to_owned())
    };
    let server_name = table.optional(report, "sni", name).value;
    let alpn = table.or(report, "alpn", Vec::new(), |item, report| {
        let read = |item: &Item<'_>, report: &mut Report| {
            let text = item.text(report, "a protocol or a list of them, such as `\"h2\"`")?;
            report.take(&item.place, values::protocol(text)).map(|()| text.to_owned())
        };
        item.one_or_more(report)?.iter().map(|item| read(item, report)).collect()
    });
    let http2 = table.optional(report, "http2", |item, report| item.flag(report));
    let host = table.optional(report, "host", name).value;
    let path = table.optional(report, "path", |item, report| {
        let text = item.text(report, "a path, such as `\"/api/v1\"`")?;
        let path = if text.starts_with('/') {
            normal::path(text).ok_or_else(|| NotAPattern::Path(text.to_owned()).into())
        } else {
            Err(NotAPattern::NoSlash(text.to_owned()).into())
        };
        report.take(&item.place, path).map(|_| text.to_owned())
    });
    let query = pairs(table, report, "query");
    let headers = pairs(table, report, "header");
    let cookies = pairs(table, report, "cookie");
    (report.mistakes.len() == wrong).then_some(Imagined {
        peer: None,
        user,
        context: context.value.flatten(),
        server_name,
        alpn: alpn.value,
        http2: http2.value == Some(true),
        host,
        path: path.value,
        query,
        headers,
        cookies,
    })
}

fn pairs(table: &Section<'_>, report: &mut Report, key: &'static str) -> Vec<(String, String)> {
    let takes = "a table of names and values, such as `{ name = \"value\" }`";
    let read = |item: &Item<'_>, report: &mut Report| {
        let pairs = item.pairs(report, takes);
        let pairs = pairs.iter().map(|(_, item)| {
            Some((
                item.key().to_owned(),
                item.text(report, "a text, such as `\"gold\"`")?.to_owned(),
            ))
        });
        pairs.collect::<Option<Vec<_>>>()
    };
    table.or(report, key, Vec::new(), read).value
}
