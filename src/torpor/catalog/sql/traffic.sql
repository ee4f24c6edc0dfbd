-- name: add_traffic
UPDATE databases SET received_bytes = received_bytes + :received, sent_bytes = sent_bytes + :sent WHERE id = :id;

-- name: traffic
SELECT id, received_bytes, sent_bytes FROM databases WHERE received_bytes <> 0 OR sent_bytes <> 0;
