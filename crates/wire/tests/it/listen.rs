use wire::listen::{ListenError, bind};

#[tokio::test]
async fn a_port_in_use_is_named() {
    let first = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = first.local_addr().unwrap();
    let error = bind(address).await.unwrap_err();
    assert!(matches!(error, ListenError::InUse { address: named } if named == address));
    assert_eq!(
        error.to_string(),
        format!("port {} of 127.0.0.1 is in use by another program", address.port())
    );
}

#[tokio::test]
async fn an_address_of_another_machine_is_named() {
    // 192.0.2.0/24 is kept for documentation (RFC 5737).
    let error = bind("192.0.2.1:0".parse().unwrap()).await.unwrap_err();
    assert_eq!(error.to_string(), "this machine has no address 192.0.2.1");
}
