-- Times stand in the log with the zone of the session that wrote them. Relays before this version take what they
-- find there for UTC. History: run once, never edited after a release.

update rowcast.state set needs = 8;
