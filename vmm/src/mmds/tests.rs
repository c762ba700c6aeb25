//! What a guest is answered.

use serde_json::json;

use super::*;

fn service(config: &str) -> MetadataService {
    let metadata = Metadata::default();
    let document = json!({"latest": {"meta-data": {"ami-id": "ami-12345678", "tags": ["a"]}}});
    metadata.put(document).unwrap();
    MetadataService::new(config.parse().unwrap(), metadata.into())
}

/// Status, headers and body of what comes for a request with these headers.
fn ask(service: &MetadataService, line: &str, headers: &str) -> (u16, String, String) {
    let request = format!("{line} HTTP/1.1\r\nHost: 169.254.169.254\r\n{headers}\r\n");
    let response = service
        .respond(request.as_bytes())
        .expect("it is a whole request");
    let response = String::from_utf8(response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let (line, headers) = head.split_once("\r\n").unwrap();
    let status = line.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
    (status, headers.to_owned(), body.to_owned())
}

#[track_caller]
fn expect(service: &MetadataService, line: &str, headers: &str, status: u16, named: &str) {
    let (found, _, body) = ask(service, line, headers);
    assert_eq!(found, status, "{line} {headers}: {body}");
    assert!(body.contains(named), "{line} {headers}: {body}");
}

#[test]
fn version_1_tells_who_asks() {
    let service = service("net=eth0");
    for (line, headers, status, named) in [
        ("GET /latest", "", 200, "meta-data/"),
        ("GET /latest/meta-data/", "", 200, "ami-id\ntags"),
        ("GET //latest///meta-data/ami-id", "", 200, "ami-12345678"),
        (
            "GET http://169.254.169.254/latest/meta-data/ami-id",
            "",
            200,
            "ami-12345678",
        ),
        (
            "GET /latest/meta-data/ami-id",
            "Accept: */*\r\n",
            200,
            "ami-12345678",
        ),
        (
            "GET /latest/meta-data/ami-id",
            "accept: text/html, application/json;q=0.9\r\n",
            200,
            "\"ami-12345678\"",
        ),
        (
            "GET /latest/meta-data/tags",
            "Accept: application/json\r\n",
            200,
            "[\"a\"]",
        ),
        ("GET /latest/meta-data/tags", "", 501, "unsupported type"),
        ("GET /latest/user-data", "", 404, "/latest/user-data"),
        ("GET http://169.254.169.254", "", 400, "URI"),
        ("POST /latest", "", 405, "Not allowed"),
        ("GET /latest", "X-metadata-token: whatever\r\n", 200, "meta-data/"),
        ("GET /latest", "Transfer-Encoding: chunked\r\n", 501, "Transfer"),
        ("GET /latest", "Content-Length: many\r\n", 400, "no number"),
        ("GET /latest", "Content-Length: 16385\r\n", 400, "too long"),
        (
            "GET /latest",
            "Content-Length: 18446744073709551615\r\n",
            400,
            "too long",
        ),
    ] {
        expect(&service, line, headers, status, named);
    }
    let (_, headers, _) = ask(&service, "DELETE /latest", "");
    assert!(headers.contains("Allow: GET, PUT"), "{headers}");
}

#[test]
fn version_2_wants_a_token_that_it_gave() {
    let service = service("net=eth0,version=V2");
    expect(&service, "GET /latest", "", 401, "No MMDS token");
    expect(
        &service,
        "GET /latest",
        "X-metadata-token: made up\r\n",
        401,
        "not valid",
    );
    for (ask_with, tell_with) in [
        ("X-metadata-token-ttl-seconds", "X-metadata-token"),
        ("x-aws-ec2-metadata-token-ttl-seconds", "X-Aws-Ec2-Metadata-Token"),
    ] {
        let ttl = format!("{ask_with}: 21600\r\n");
        let (status, headers, token) = ask(&service, "PUT /latest/api/token", &ttl);
        assert_eq!(status, 200);
        assert!(
            headers.to_lowercase().contains(&ttl.trim().to_lowercase()),
            "{headers}"
        );
        expect(
            &service,
            "GET /latest",
            &format!("{tell_with}: {token}\r\n"),
            200,
            "meta-data/",
        );
    }
}

#[test]
fn no_token_is_given_for_a_wrong_request() {
    let service = service("net=eth0,version=V2");
    let ttl = "X-metadata-token-ttl-seconds: 60\r\n";
    for (line, headers, status, named) in [
        ("PUT /latest/api/token", String::new(), 400, "time to live"),
        (
            "PUT /latest/api/token",
            ttl.replace("60", "0"),
            400,
            "between 1 and 21600",
        ),
        (
            "PUT /latest/api/token",
            ttl.replace("60", "21601"),
            400,
            "between 1 and 21600",
        ),
        ("PUT /latest/api/token", ttl.replace("60", "-1"), 400, "-1"),
        (
            "PUT /latest/api/token",
            format!("{ttl}X-Forwarded-For: 10.0.0.1\r\n"),
            400,
            "X-Forwarded-For",
        ),
        ("PUT /latest/api", ttl.to_owned(), 404, "/latest/api"),
    ] {
        expect(&service, line, &headers, status, named);
    }
}

#[test]
fn with_imds_compat_nobody_gets_json() {
    let service = service("net=eth0,imds-compat");
    let (status, headers, body) = ask(&service, "GET /latest", "Accept: application/json\r\n");
    assert_eq!((status, body.as_str()), (200, "meta-data/"));
    assert!(headers.contains("Content-Type: text/plain"), "{headers}");
}

#[test]
fn a_request_is_waited_for_until_it_is_whole_or_too_long() {
    let service = service("net=eth0");
    let request = b"GET /latest HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc";
    for len in 0..request.len() {
        assert_eq!(service.respond(&request[..len]), None, "{len}");
    }
    let response = service.respond(request).unwrap();
    assert!(response.starts_with(b"HTTP/1.0 200 OK\r\n"));

    let mut long = b"GET /latest HTTP/1.1\r\nX: ".to_vec();
    long.resize(devices::virtio::net::MAX_REQUEST - 1, b'x');
    assert_eq!(service.respond(&long), None);
    long.push(b'x');
    assert!(service.respond(&long).unwrap().starts_with(b"HTTP/1.1 400 "));
    for wrong in [
        &b"\0"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.1\r\na b: c\r\n\r\n",
    ] {
        assert!(service.respond(wrong).unwrap().starts_with(b"HTTP/1.1 400 "));
    }
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65));
    assert!(
        service
            .respond(many.as_bytes())
            .unwrap()
            .starts_with(b"HTTP/1.1 400 ")
    );
}
