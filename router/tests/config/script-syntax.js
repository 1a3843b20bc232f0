const names = { "ä.example": "😀" };

	let ö = "😀", pool = ;

onconnection = ({ connection }) => pools.app.postMessage(1, [connection]);
