-- name: add_drill
INSERT INTO drills (database_id, result, began_at, ended_at, moment, base, size_bytes, log_bytes, tables, rows, checked, cause, detail, hint)
SELECT
    :id, :result, :began_at, :ended_at, :moment, :base, :size_bytes, :log_bytes, :tables, :rows, :checked, :cause, :detail, :hint
WHERE EXISTS (SELECT 1 FROM databases WHERE id = :id AND state = 'ready');

-- name: forget_old_drills
DELETE FROM drills
WHERE
    database_id = :id
    AND number NOT IN (SELECT d.number FROM drills AS d WHERE d.database_id = :id ORDER BY d.number DESC LIMIT :keep)
    -- The last one that said something stays, however often it was not possible since.
    AND number IS NOT (SELECT max(d.number) FROM drills AS d WHERE d.database_id = :id AND d.result <> 'not_possible');

-- name: drills_of_database
SELECT
    result, began_at, ended_at, moment, base, size_bytes, log_bytes, tables, rows, checked, cause, detail, hint
FROM drills WHERE database_id = :id ORDER BY number DESC;

-- name: last_drill
SELECT
    result, began_at, ended_at, moment, base, size_bytes, log_bytes, tables, rows, checked, cause, detail, hint
FROM drills WHERE database_id = :id AND result <> 'not_possible' ORDER BY number DESC LIMIT 1;

-- name: last_drills
SELECT
    database_id, result, began_at, ended_at, moment, base, size_bytes, log_bytes, tables, rows, checked, cause, detail, hint
FROM drills AS d
WHERE number = (SELECT max(o.number) FROM drills AS o WHERE o.database_id = d.database_id)
ORDER BY number DESC;

-- name: drill_candidates
SELECT
    h.database_id,
    max(CASE WHEN d.result <> 'not_possible' THEN d.ended_at END),
    max(d.ended_at)
FROM histories AS h
JOIN databases AS b ON b.id = h.database_id AND b.state = 'ready'
LEFT JOIN drills AS d ON d.database_id = h.database_id
WHERE h.base_at IS NOT NULL OR h.run > 1
GROUP BY h.database_id;

-- name: drill_results
SELECT
    d.database_id,
    d.result
FROM drills AS d
WHERE
    d.number = (SELECT max(o.number) FROM drills AS o WHERE o.database_id = d.database_id AND o.result <> 'not_possible');
