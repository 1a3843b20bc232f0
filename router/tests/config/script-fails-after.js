onconnection = ({ connection }) => {
  switch (connection.remoteAddress) {
    case "10.0.0.1": connection.reject(404); return connection.reject(404);
    case "10.0.0.2": pools.app.postMessage("Grüße", [connection]); /* äöü */ return typo;
    case "10.0.0.4": connection.reject(403); return;
  }
  (async () => { pools.typo.postMessage(1, [connection]) })();
};
