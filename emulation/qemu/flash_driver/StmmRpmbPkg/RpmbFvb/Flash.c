/** @file
  The flash's content: what a formatted one looks like, loading it, writing it.

  SPDX-License-Identifier: MIT
**/

#include "RpmbFvb.h"

#include <Library/BaseLib.h>
#include <Library/BaseMemoryLib.h>
#include <Library/DebugLib.h>

#define FLASH_ATTRIBUTES  (EFI_FVB2_READ_ENABLED_CAP | EFI_FVB2_READ_STATUS |      \
                           EFI_FVB2_WRITE_ENABLED_CAP | EFI_FVB2_WRITE_STATUS |    \
                           EFI_FVB2_STICKY_WRITE | EFI_FVB2_MEMORY_MAPPED |        \
                           EFI_FVB2_ERASE_POLARITY)

#pragma pack(1)

///
/// What a formatted flash begins with; the first variable follows.
///
typedef struct {
  EFI_FIRMWARE_VOLUME_HEADER    Volume;
  EFI_FV_BLOCK_MAP_ENTRY        BlockMapEnd;
  VARIABLE_STORE_HEADER         Store;
} FLASH_HEADERS;

#pragma pack()

#define VOLUME_HEADER_SIZE  OFFSET_OF (FLASH_HEADERS, Store)

STATIC_ASSERT (VOLUME_HEADER_SIZE == 72, "layout of the firmware volume header");
STATIC_ASSERT (sizeof (FLASH_HEADERS) == 100, "layout of the variable store header");

/**
  Make the headers of a formatted flash.

  @param[out] Headers   Receives them.
**/
STATIC
VOID
MakeHeaders (
  OUT FLASH_HEADERS  *Headers
  )
{
  UINT16  VolumeWords[VOLUME_HEADER_SIZE / sizeof (UINT16)];

  ZeroMem (Headers, sizeof (*Headers));

  CopyGuid (&Headers->Volume.FileSystemGuid, &gEfiSystemNvDataFvGuid);
  Headers->Volume.FvLength              = FLASH_SIZE;
  Headers->Volume.Signature             = EFI_FVH_SIGNATURE;
  Headers->Volume.Attributes            = FLASH_ATTRIBUTES;
  Headers->Volume.HeaderLength          = VOLUME_HEADER_SIZE;
  Headers->Volume.Revision              = EFI_FVH_REVISION;
  Headers->Volume.BlockMap[0].NumBlocks = FLASH_BLOCKS;
  Headers->Volume.BlockMap[0].Length    = FLASH_BLOCK_SIZE;

  CopyMem (VolumeWords, Headers, sizeof (VolumeWords));
  Headers->Volume.Checksum = CalculateCheckSum16 (VolumeWords, sizeof (VolumeWords));

  CopyGuid (&Headers->Store.Signature, &gEfiAuthenticatedVariableGuid);
  Headers->Store.Size   = VARIABLE_SIZE - VOLUME_HEADER_SIZE;
  Headers->Store.Format = VARIABLE_STORE_FORMATTED;
  Headers->Store.State  = VARIABLE_STORE_HEALTHY;
}

/**
  Erase the whole flash, then write the headers.

  A power cut in between leaves no headers, and the next start formats again.

  @param[in] Headers   The headers of a formatted flash.

  @retval EFI_SUCCESS  The flash has the headers and is blank otherwise.
  @retval others       The storage failed.
**/
STATIC
EFI_STATUS
Format (
  IN CONST FLASH_HEADERS  *Headers
  )
{
  EFI_STATUS  Status;

  Status = FlashWrite (0, FLASH_SIZE, mErased);
  if (EFI_ERROR (Status)) {
    return Status;
  }

  return FlashWrite (0, sizeof (*Headers), (CONST UINT8 *)Headers);
}

EFI_STATUS
FlashWrite (
  IN UINTN        Offset,
  IN UINTN        Length,
  IN CONST UINT8  *Buffer
  )
{
  EFI_STATUS  Status;

  Status = StorageWrite (Offset, Length, Buffer);
  if (!EFI_ERROR (Status)) {
    CopyMem (mFlash + Offset, Buffer, Length);
  }

  return Status;
}

EFI_STATUS
LoadFlash (
  VOID
  )
{
  FLASH_HEADERS  Headers;
  EFI_STATUS     Status;

  Status = StorageRead (0, FLASH_SIZE, mFlash);

  // OP-TEE answers so when there is no file yet. Any other error says nothing about the file's
  // content, and formatting would destroy a store that the next start may be able to read.
  if (EFI_ERROR (Status) && (Status != EFI_INVALID_PARAMETER)) {
    return Status;
  }

  MakeHeaders (&Headers);

  // Up to the store's size the headers never change. Format and state are the variable driver's.
  if (!EFI_ERROR (Status) &&
      (CompareMem (mFlash, &Headers, OFFSET_OF (FLASH_HEADERS, Store.Format)) == 0))
  {
    return EFI_SUCCESS;
  }

  DEBUG ((DEBUG_INFO, "%a: no variable store (%r), formatting\n", __func__, Status));
  return Format (&Headers);
}
