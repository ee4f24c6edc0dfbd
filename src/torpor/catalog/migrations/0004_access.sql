SELECT 1;  -- being written
