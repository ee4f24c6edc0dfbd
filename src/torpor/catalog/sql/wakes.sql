-- name: count_wake
UPDATE databases SET wakes = wakes + 1 WHERE id = :id RETURNING wakes;

-- name: add_wake
INSERT INTO wakes (database_id, number, at, reason, tier, detail, elapsed_ms, steps) VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: trim_wakes
DELETE FROM wakes WHERE database_id = :id AND number <= :number;

-- name: wakes
SELECT database_id, at, reason, tier, detail, elapsed_ms, steps FROM wakes WHERE database_id = :id ORDER BY number DESC LIMIT :limit;

-- name: last_wakes
SELECT databases.wakes, wakes.database_id, wakes.at, wakes.reason, wakes.tier, wakes.detail, wakes.elapsed_ms, wakes.steps
FROM databases JOIN wakes ON wakes.database_id = databases.id AND wakes.number = databases.wakes;
