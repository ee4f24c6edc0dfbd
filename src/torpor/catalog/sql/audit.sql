-- name: audit_head
SELECT number, hash FROM audit WHERE number = (SELECT max(number) FROM audit)
UNION ALL
SELECT number, hash FROM audit_anchor
LIMIT 1;

-- name: audit_anchor
SELECT number, hash FROM audit_anchor;

-- name: add_audit
INSERT INTO audit (number, at, actor, actor_name, address, action, target, workspace_id, result, detail, begun, previous, hash)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: audit_down
SELECT number, at, actor, actor_name, address, action, target, workspace_id, result, detail, begun, previous, hash FROM audit
WHERE number >= :low AND number <= :high
    AND (:workspace IS NULL OR workspace_id = :workspace)
    AND (:action IS NULL OR action = :action OR substr(action, 1, length(:action) + 1) = :action || '.')
    AND (:target IS NULL OR target = :target)
    AND (:actor IS NULL OR actor = :actor OR actor_name = :actor)
    AND (:since IS NULL OR at >= :since)
    AND (:until IS NULL OR at < :until)
    AND (NOT :outcomes OR result <> 'begun')
ORDER BY number DESC LIMIT :limit;

-- name: audit_up
SELECT number, at, actor, actor_name, address, action, target, workspace_id, result, detail, begun, previous, hash FROM audit
WHERE number >= :low AND number <= :high
    AND (:workspace IS NULL OR workspace_id = :workspace)
    AND (:action IS NULL OR action = :action OR substr(action, 1, length(:action) + 1) = :action || '.')
    AND (:target IS NULL OR target = :target)
    AND (:actor IS NULL OR actor = :actor OR actor_name = :actor)
    AND (:since IS NULL OR at >= :since)
    AND (:until IS NULL OR at < :until)
    AND (NOT :outcomes OR result <> 'begun')
ORDER BY number LIMIT :limit;

-- name: audit_unfinished
SELECT number, at, actor, actor_name, address, action, target, workspace_id, result, detail, begun, previous, hash FROM audit AS began
WHERE result = 'begun' AND NOT EXISTS (SELECT 1 FROM audit AS ended WHERE ended.begun = began.number)
ORDER BY number;

-- name: move_audit_anchor
UPDATE audit_anchor SET number = :number, hash = :hash;

-- name: drop_audit
DELETE FROM audit WHERE number <= :number;
